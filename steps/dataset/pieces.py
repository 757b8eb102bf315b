"""Pieces of a file: rows that can be checked apart from the rest, here or by another process."""

import codecs
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PIECE = 512 << 10
"""Bytes. Larger ones leave the cache, so that two processes gain nothing; smaller ones cost more."""
LONGEST_ROW = 16 << 20
"""Bytes, with the line's end. What is longer is not a chat but a file without lines."""
_LOOK = 8 << 10
"""Bytes that are looked at a time for the end of a line."""

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
        """The lines; a row above LONGEST_ROW is cut off above it."""
        return lines_of(self.text())

    def text(self) -> bytes:
        """The lines as they stand in the file, each with a newline at its end."""
        file = os.open(self.path, os.O_RDONLY)  # a file object would take longer than the reading
        try:
            begin = _line_start(file, self.start, self.size)
            if begin >= self.end:  # all of it is the middle of one long line
                return b""
            end = _line_start(file, self.end, LONGEST_ROW)
            data = os.pread(file, end - begin, begin)
        finally:
            os.close(file)
        if not data.endswith(b"\n"):  # the last of the file
            data += b"\n"
        return data if begin else data.removeprefix(codecs.BOM_UTF8)


def _line_start(file: int, place: int, limit: int) -> int:
    """Where the first line begins at `place` or after it; if none does, `limit` bytes after it."""
    if place == 0:
        return 0
    at = place - 1
    while at < place + limit:
        text = os.pread(file, _LOOK, at)
        if not text:
            return at
        newline = text.find(b"\n")
        if newline >= 0:
            return min(at + newline + 1, place + limit)
        at += len(text)
    return place + limit


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a text, with their ends."""
    return io.BytesIO(text).readlines()  # several times as fast as bytes.split
