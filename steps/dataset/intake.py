"""All rows of all files, checked, and where each lies in canonical form.

Most files are canonical as they are, and their rows stay where they lie: writing half a data set
to a spool and reading it again would cost as much as checking it. Only rows that had to be changed,
and those of files that take work to read, are put into a spool on disk. What stays in memory is a few numbers a row. Pieces are checked by several processes where there is
enough to do, and counted in the order of the files, so what comes out does not depend on how many.
"""

import contextlib
import os
import signal
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from steps.dataset import chats
from steps.dataset.chats import Schema
from steps.dataset.pieces import LONGEST_ROW, Block, Range, Unit, lines_of
from steps.errors import ConfigError, TransientError
from steps.signals import end_with_parent

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

# Below this a second process costs more than it saves.
_BYTES_FOR_PROCESSES = 8 << 20
_AT_A_TIME = 4
"""Pieces that a process is given at once: handing over costs as much as checking a few rows."""
_AHEAD = 4
"""Times as many may be done before their turn: what was found in them is in memory."""
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
    characters: "array[int]" = field(default_factory=lambda: array("I"))
    turns: "array[int]" = field(default_factory=lambda: array("H"))

    def extend(self, more: "Kept") -> None:
        """Take over the entries of later rows."""
        self.digests.extend(more.digests)
        self.characters.extend(more.characters)
        self.turns.extend(more.turns)


NOWHERE, SOURCE, SPOOL = 0, 1, 2
"""Where a line's canonical row lies: it is none, it is the line itself, it is in the spool."""


@dataclass
class Segment:
    """The rows of one piece, where they can be read again."""

    places: bytearray
    """NOWHERE, SOURCE or SPOOL for each line."""
    spool: Path
    """Holds the rows that are not in the source: `size` bytes, from `offset` on."""
    offset: int = 0
    size: int = 0
    source: Range | None = None
    """The piece, where some of its lines are canonical as they stand."""
    digest: int = 0
    """Of the source's text."""

    def rows(self) -> list[bytes]:
        """A canonical row for each line, with its end; anything where there is none.

        Raises TransientError where the source is no longer what was checked.
        """
        if self.source:
            text = self.source.text()
            if xxhash.xxh3_64_intdigest(text) != self.digest:
                raise TransientError(
                    f"{self.source.path}: it changed while it was read; run the same command again"
                )
            rows = lines_of(text)
        else:
            rows = [b""] * len(self.places)
        if self.size:
            with self.spool.open("rb") as spool:
                spool.seek(self.offset)
                spooled = iter(lines_of(spool.read(self.size)))
            number = self.places.find(SPOOL)
            while number >= 0:
                rows[number] = next(spooled)
                number = self.places.find(SPOOL, number + 1)
        return rows


@dataclass
class Checked:
    """What was found in one piece."""

    segment: Segment
    size: int
    """Bytes of the file that it was."""
    kept: Kept
    rejected: list[Rejected]
    roles: dict[tuple[str, ...], int]
    """How many rows have this sequence of roles."""
    with_tools: int

    @property
    def lines(self) -> int:
        """Blank ones too."""
        return len(self.segment.places)


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
        return len(self.kept.digests) + self.rejected

    def add(self, checked: Checked) -> None:
        """Count a piece."""
        if checked.kept.digests:
            self.segments.append(checked.segment)
        self.kept.extend(checked.kept)
        self.rejected += len(checked.rejected)
        self.with_tools += checked.with_tools
        for roles, times in checked.roles.items():
            self.with_system += times * ("system" in roles)
            for role in roles:
                self.roles[role] += times


Pieces = Iterable[tuple[str, Block | Range]]
"""Pieces, each with the name of its file."""
Batch = list[tuple[str, Block | Range]]
OnPiece = Callable[[str, Unit, Checked], None]


@contextlib.contextmanager
def workers(size: int) -> Iterator["Executor | None"]:
    """Processes that check rows beside this one; None where there is too little for them to do.

    They start at once: before threads do, so that they can be forked, which is soonest done.
    Raises ConfigError where one of them is killed.
    """
    processes = min(len(os.sched_getaffinity(0)), 8)
    if processes == 1 or size < _BYTES_FOR_PROCESSES:
        yield None
        return
    # Small inputs need not wait for these.
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    alone = sys.platform == "linux" and len([*Path("/proc/self/task").iterdir()]) == 1
    try:
        with ProcessPoolExecutor(
            processes,
            get_context("fork" if alone else "spawn"),
            initializer=_start,
            initargs=(os.getpid(),),
        ) as pool:
            pool.submit(os.getpid)
            yield pool
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that checked rows was killed, most likely for want of memory: give the step "
            "more of it"
        ) from error


def take_in(
    pieces: Pieces,
    spool: Path,
    *,
    schema: Schema,
    on_piece: OnPiece,
    pool: "Executor | None" = None,
) -> Intake:
    """Check the rows of all pieces, by the processes of the pool where there is one.

    The folder `spool` takes the rows that are not in canonical form in their files. `on_piece` gets,
    for each piece in order, the name of its file, what numbers in it count, and what was found.
    """
    intake = Intake()
    for (name, piece), checked in _checked(pieces, spool, schema, pool):
        on_piece(name, piece.unit, checked)
        intake.add(checked)
    return intake


def check(piece: Block | Range, spool: Path, schema: Schema) -> Checked:
    """Check the rows of a piece; those to be spooled are appended to this process's file of the spool."""
    source = piece if isinstance(piece, Range) else None
    text = source.text() if source else b""
    rows = lines_of(text) if source else piece.rows()
    found = chats.read(rows, schema)
    places = bytearray(
        [
            NOWHERE if line is None else SOURCE if source and line is row else SPOOL
            for line, row in zip(found.lines, rows, strict=True)
        ]
    )
    segment = Segment(places, spool / str(os.getpid()))
    if SOURCE in places:
        segment.source, segment.digest = source, xxhash.xxh3_64_intdigest(text)
    if SPOOL in places:
        spooled = [
            line for line, place in zip(found.lines, places, strict=True) if line and place == SPOOL
        ]
        with segment.spool.open("ab") as out:
            segment.offset = out.tell()
            segment.size = out.write(b"".join(spooled))
    return Checked(
        segment,
        piece.size,
        Kept(
            digests=array("Q", [xxhash.xxh3_64_intdigest(line) for line in found.lines if line]),
            characters=array("I", found.characters),
            turns=array("H", [min(number, 0xFFFF) for number in found.turns]),
        ),
        [
            Rejected(number, reason, rows[number].rstrip(b"\r\n"))
            if len(rows[number]) <= LONGEST_ROW
            else Rejected(number, reason, rows[number][:_SHOWN_OF_LONG])
            for number, reason in found.faults
        ],
        roles=found.roles,
        with_tools=found.with_tools,
    )


def _checked(
    pieces: Pieces, spool: Path, schema: Schema, pool: "Executor | None"
) -> Iterator[tuple[tuple[str, Block | Range], Checked]]:
    if pool is None:
        for item in pieces:
            yield item, check(item[1], spool, schema)
        return
    waiting: deque[tuple[Batch, Future[list[Checked]]]] = deque()
    left = iter(pieces)
    while batch := list(islice(left, _AT_A_TIME)):
        waiting.append((batch, pool.submit(_check_each, batch, spool, schema)))
        if len(waiting) > _AHEAD:
            yield from _done(*waiting.popleft())
    while waiting:
        yield from _done(*waiting.popleft())


def _check_each(batch: Batch, spool: Path, schema: Schema) -> list[Checked]:
    return [check(piece, spool, schema) for _, piece in batch]


def _done(
    batch: Batch, found: "Future[list[Checked]]"
) -> Iterator[tuple[tuple[str, Block | Range], Checked]]:
    yield from zip(batch, found.result(), strict=True)


def _start(parent: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent acts on it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the parent's, which tidies up
