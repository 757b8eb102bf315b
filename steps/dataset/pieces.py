"""Pieces of a file: rows that can be checked apart from the rest, here or by another process."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

PIECE = 512 << 10
"""Bytes. Larger ones leave the cache, so that two processes gain nothing; smaller ones cost more."""
LONGEST_ROW = 16 << 20
"""Bytes. What is longer is not a chat but a file without lines."""

Unit = Literal["line", "row"]


@dataclass(frozen=True)
class Block:
    """Rows that have been read."""

    lines: list[bytes]
    size: int
    """Bytes of the file that they took."""
    unit: Unit = "line"
    """What their numbers count."""

    def rows(self) -> list[bytes]:
        """The rows. One of white space alone is none, but counts as a line."""
        return self.lines


@dataclass(frozen=True)
class Range:
    """The lines that begin between two places of a file: nobody has to look for them first."""

    path: Path
    start: int
    end: int
    unit: Unit = "line"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.end - self.start

    def rows(self) -> list[bytes]:
        """The lines, without their ends; a row above LONGEST_ROW is cut off above it."""
        return lines_of(self.text())

    def text(self) -> bytes:
        """The lines as they stand in the file."""
        with self.path.open("rb") as file:
            begin = _line_start(file, self.start, self.size)
            if begin >= self.end:  # all of it is the middle of one long line
                return b""
            end = _line_start(file, self.end, LONGEST_ROW)
            file.seek(begin)
            data = file.read(end - begin)
        return data if begin else data.removeprefix(codecs.BOM_UTF8)


def _line_start(file: IO[bytes], place: int, limit: int) -> int:
    """Where the first line begins at `place` or after it; if none does, `limit` bytes after it."""
    if place == 0:
        return 0
    file.seek(place - 1)
    file.readline(limit + 1)
    return file.tell()


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a text, without their ends."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
