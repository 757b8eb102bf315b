"""All rows of all files, checked, and where each lies in canonical form.

Most files are canonical as they are, and their rows stay where they lie: writing half a data set
to a spool and reading it again would cost as much as checking it. Only rows that had to be changed,
and those of files that take work to read, are put into a spool on disk. What stays in memory is a few
numbers a row. Pieces are checked by several processes where there is enough to do, and counted in the
order of the files, so what comes out does not depend on how many.
"""

import contextlib
import functools
import io
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import xxhash

from steps.dataset import chats
from steps.dataset.chats import AS_IS, REWRITTEN, Chats, Kept
from steps.dataset.params import Schema
from steps.dataset.pieces import Block, Range, Unit, lines_of
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


class Spool:
    """A file for canonical rows that are not in their source as they are: each process has its own.

    It stays open: opening a file takes as long as checking twenty rows.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / str(os.getpid())
        self._file: IO[bytes] | None = None

    def append(self, rows: Iterable[bytes]) -> tuple[int, int]:
        """Add the rows; where they lie: the offset, and the size in bytes."""
        if self._file is None:
            self._file = self.path.open("ab")
        offset = self._file.tell()
        size = self._file.write(b"".join(rows))
        self._file.flush()
        return offset, size

    def close(self) -> None:
        """No more rows come."""
        if self._file:
            self._file.close()


class SpooledRows:
    """Reads what was spooled, by whichever process."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def __enter__(self) -> "SpooledRows":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, path: Path, offset: int, size: int) -> list[bytes]:
        """The rows that lie there."""
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return lines_of(os.pread(self._files[path], size, offset))


@dataclass
class Segment:
    """The rows of one piece, where they can be read again."""

    places: bytearray
    """For each line NO_CHAT, AS_IS (it lies in the source), or REWRITTEN (it lies in the spool)."""
    spool: Path
    """File that holds the rows that were rewritten: `size` bytes, from `offset` on."""
    offset: int = 0
    size: int = 0
    source: Range | None = None
    """The piece, where some of its lines are canonical as they stand."""
    digest: int = 0
    """Of the source's text."""

    def rows(self, spooled: SpooledRows) -> list[bytes]:
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
            number = self.places.find(REWRITTEN)
            for row in spooled.read(self.spool, self.offset, self.size):
                rows[number] = row
                number = self.places.find(REWRITTEN, number + 1)
        return rows


@dataclass
class Checked:
    """What was found in one piece."""

    segment: Segment
    size: int
    """Bytes of the file that it was."""
    chats: Chats
    """Without the rows that were rewritten: these are in the spool."""

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
        found = checked.chats
        if found.kept.digests:
            self.segments.append(checked.segment)
        self.kept.extend(found.kept)
        self.rejected += len(found.rejected)
        self.with_tools += found.with_tools
        for roles, times in found.roles.items():
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
            # Until a fork is ready, our own way to end is not to be its.
            held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                pool.submit(os.getpid)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
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


def check(piece: Block | Range, spool: Spool, schema: Schema) -> Checked:
    """Check the rows of a piece; canonical rows that are not in its file go to the spool."""
    source = piece if isinstance(piece, Range) else None
    text = source.text() if source else b""
    rows = io.BytesIO(text) if source else piece.rows()
    found = chats.read(rows, schema, rewrite=not source)
    segment = Segment(found.places, spool.path)
    if AS_IS in found.places:
        segment.source, segment.digest = source, xxhash.xxh3_64_intdigest(text)
    if found.rewritten:
        segment.offset, segment.size = spool.append(found.rewritten)
        found.rewritten.clear()  # to hand them to another process would cost as much again
    return Checked(segment, piece.size, found)


def _checked(
    pieces: Pieces, folder: Path, schema: Schema, pool: "Executor | None"
) -> Iterator[tuple[tuple[str, Block | Range], Checked]]:
    if pool is None:
        with contextlib.closing(Spool(folder)) as spool:
            for item in pieces:
                yield item, check(item[1], spool, schema)
        return
    waiting: deque[tuple[Batch, Future[list[Checked]]]] = deque()
    left = iter(pieces)
    while batch := list(islice(left, _AT_A_TIME)):
        waiting.append((batch, pool.submit(_check_each, batch, folder, schema)))
        if len(waiting) > _AHEAD:
            yield from _done(*waiting.popleft())
    while waiting:
        yield from _done(*waiting.popleft())


def _check_each(batch: Batch, folder: Path, schema: Schema) -> list[Checked]:
    spool = _own_spool(folder)
    return [check(piece, spool, schema) for _, piece in batch]


@functools.cache
def _own_spool(folder: Path) -> Spool:
    """That of a process which only checks rows: it is closed when this ends."""
    return Spool(folder)


def _done(
    batch: Batch, found: "Future[list[Checked]]"
) -> Iterator[tuple[tuple[str, Block | Range], Checked]]:
    yield from zip(batch, found.result(), strict=True)


def _start(parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the parent's, which tidies up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent acts on it
    end_with_parent(parent)
