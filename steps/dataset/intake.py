"""All rows of all files, checked and in canonical form, in a spool on disk.

What stays in memory is a few numbers a row. Pieces are checked by several processes where there is
enough to do, and counted in the order of the files, so what comes out does not depend on how many.
"""

import os
import signal
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import xxhash

from steps.dataset import chats
from steps.dataset.chats import Schema
from steps.dataset.pieces import LONGEST_ROW, Block, Range, Unit
from steps.signals import end_with_parent

# Below this a second process costs more than it saves.
_BYTES_FOR_PROCESSES = 24 << 20
_SHOWN_OF_LONG = 1000


class Rejected(NamedTuple):
    """A row that is refused."""

    line: int
    """Of its piece, from 0."""
    reason: str
    row: bytes


@dataclass
class Kept:
    """What is known of the rows that are kept: the arrays have an entry for each, in their order."""

    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of the canonical rows: equal for equal rows."""
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    """Bytes in the spool, the newline included."""
    characters: "array[int]" = field(default_factory=lambda: array("I"))
    turns: "array[int]" = field(default_factory=lambda: array("H"))

    def extend(self, more: "Kept") -> None:
        """Take over the entries of later rows."""
        self.digests.extend(more.digests)
        self.lengths.extend(more.lengths)
        self.characters.extend(more.characters)
        self.turns.extend(more.turns)


@dataclass
class Checked:
    """What was found in one piece."""

    spool: Path
    """Holds its canonical rows, from `offset` on."""
    offset: int
    size: int
    """Bytes of the file that it was."""
    lines: int
    """Blank ones too."""
    kept: Kept = field(default_factory=Kept)
    rejected: list[Rejected] = field(default_factory=list)
    roles: "Counter[tuple[str, ...]]" = field(default_factory=Counter)
    """How many rows have this sequence of roles."""
    with_tools: int = 0


class Segment(NamedTuple):
    """Rows that lie together in a spool."""

    spool: Path
    offset: int
    rows: int


@dataclass
class Intake:
    """What was found in all files."""

    kept: Kept = field(default_factory=Kept)
    segments: list[Segment] = field(default_factory=list)
    """Where the kept rows lie, in their order."""
    rejected: int = 0
    roles: "Counter[str]" = field(default_factory=Counter)
    """Turns by role."""
    with_system: int = 0
    with_tools: int = 0

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return len(self.kept.lengths) + self.rejected

    def add(self, checked: Checked) -> None:
        """Count a piece."""
        rows = len(checked.kept.lengths)
        if rows:
            self.segments.append(Segment(checked.spool, checked.offset, rows))
        self.kept.extend(checked.kept)
        self.rejected += len(checked.rejected)
        self.with_tools += checked.with_tools
        for roles, times in checked.roles.items():
            self.with_system += times * ("system" in roles)
            for role in roles:
                self.roles[role] += times


Pieces = Iterable[tuple[str, Block | Range]]
"""Pieces, each with the name of its file."""
OnPiece = Callable[[str, Unit, Checked], None]


def take_in(pieces: Pieces, spool: Path, *, size: int, schema: Schema, on_piece: OnPiece) -> Intake:
    """Check the rows of all pieces, which are about `size` bytes together.

    The canonical rows are put into the folder `spool`. `on_piece` gets, for each piece in order,
    the name of its file, what numbers in it count, and what was found.
    """
    intake = Intake()
    for (name, piece), checked in _checked(pieces, spool, size, schema):
        on_piece(name, piece.unit, checked)
        intake.add(checked)
    return intake


def check(piece: Block | Range, spool: Path, schema: Schema) -> Checked:
    """Check the rows of a piece, and append those that are kept to this process's file of the spool."""
    path = spool / str(os.getpid())
    rows = piece.rows()
    with path.open("ab") as out:
        found = Checked(path, out.tell(), piece.size, len(rows))
        lines = []
        kept = found.kept
        for number, row in enumerate(rows):
            if not row or row.isspace():
                continue
            if len(row) > LONGEST_ROW:
                reason = f"longer than {LONGEST_ROW >> 20} MiB"
                found.rejected.append(Rejected(number, reason, row[:_SHOWN_OF_LONG]))
                continue
            try:
                chat = chats.read(row, schema)
            except chats.Fault as fault:
                found.rejected.append(Rejected(number, str(fault), row))
                continue
            line = chat.line + b"\n"
            lines.append(line)
            kept.digests.append(xxhash.xxh3_64_intdigest(line))
            kept.lengths.append(len(line))
            kept.characters.append(chat.characters)
            kept.turns.append(min(len(chat.roles), 0xFFFF))
            found.roles[chat.roles] += 1
            found.with_tools += chat.tools
        out.write(b"".join(lines))
    return found


def _checked(
    pieces: Pieces, spool: Path, size: int, schema: Schema
) -> Iterator[tuple[tuple[str, Block | Range], Checked]]:
    processes = min(len(os.sched_getaffinity(0)), 8)
    if processes == 1 or size < _BYTES_FOR_PROCESSES:
        for item in pieces:
            yield item, check(item[1], spool, schema)
        return
    # Spawned, not forked: threads may be running in this process.
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
    ) as pool:
        waiting: deque[tuple[tuple[str, Block | Range], Future[Checked]]] = deque()
        for item in pieces:
            waiting.append((item, pool.submit(check, item[1], spool, schema)))
            if len(waiting) > 2 * processes:  # what is in flight bounds the memory
                first, done = waiting.popleft()
                yield first, done.result()
        while waiting:
            first, done = waiting.popleft()
            yield first, done.result()


def _start(parent: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent acts on it
