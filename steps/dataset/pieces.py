"""Pieces of a file: rows that can be checked apart from the rest, here or by another process."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
        first = max(self.start - 1, 0)
        with self.path.open("rb") as file:
            file.seek(first)
            data = file.read(self.end - first)
            if self.start:
                _, newline, data = data.partition(b"\n")
                if not newline:  # all of it is the middle of one long line
                    return b""
            if data and not data.endswith(b"\n"):
                data += file.readline(LONGEST_ROW)
        if self.start == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
        return data


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a text, without their ends."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
