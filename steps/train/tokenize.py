"""Both splits as tokens, made once on the CPU, so that GPUs only train."""

import logging
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO

from steps import files
from steps.chat_template import TemplateError
from steps.errors import DataError, InvalidRowError
from steps.progress import progress
from steps.signals import end_with_parent
from steps.tokens import ChatTokenizer, Encoded

log = logging.getLogger(__name__)

SHORTEST = 20
"""Rows below this many tokens are dropped, as instructlab-training's `data_process` drops them."""

_ROWS_A_CHUNK = 256
# Below this a second process costs more than it saves.
_BYTES_FOR_PROCESSES = 4 << 20


class NeverStopsError(DataError):
    """What is trained on would not teach the model to end a turn."""

    def __init__(self, where: Path) -> None:
        super().__init__(
            f"{where}: no assistant turn ends with an end-of-turn token, so the model would never "
            "learn to stop: the chat template writes none that the tokenizer knows as special; "
            "give another with --chat-template"
        )


@dataclass
class Counts:
    """What became of the rows of a split. Tokens are counted in the rows that are kept."""

    rows: int = 0
    dropped_long: int = 0
    dropped_short: int = 0
    dropped_masked: int = 0
    """Rows in which no token counts in the loss."""
    tokens: int = 0
    tokens_trained: int = 0
    turns: int = 0
    """The assistant's turns."""
    stops: int = 0
    """Those of them that end with an end-of-turn token in the loss."""
    endless_line: int = 0
    """The first row with one that does not; 0 for none."""
    calls: int = 0
    """Calls of tools."""
    calls_lost: int = 0
    """Those of them that the chat template leaves out."""
    lost_line: int = 0
    """The first row with one of these; 0 for none."""
    longest: int = 0
    """Tokens of the longest row."""
    highest: int = 0
    """The largest token id."""

    @property
    def kept(self) -> int:
        """Rows that training sees."""
        return self.rows - self.dropped_long - self.dropped_short - self.dropped_masked

    def __add__(self, other: "Counts") -> "Counts":
        """Both together."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        sums |= {f: max(getattr(self, f), getattr(other, f)) for f in ("longest", "highest")}
        for line in ("endless_line", "lost_line"):
            sums[line] = _first(getattr(self, line), getattr(other, line))
        return Counts(**sums)


def _first(line: int, other: int) -> int:
    return min(line, other) if line and other else line or other


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens between which a row is kept, both included."""

    shortest: int
    longest: int

    def keep(self, row: Encoded) -> bool:
        """Whether training sees the row."""
        return self.shortest <= len(row.ids) <= self.longest and row.trained > 0


def write_tokens(
    rows: Path, tokens: Path, tokenizer: ChatTokenizer, limits: Limits | None = None
) -> Counts:
    """Write a line of `input_ids`, `labels` and `len` for each row, in the rows' order.

    The columns are those that instructlab-training's worker reads. Without limits every row is
    kept. Raises InvalidRowError for a row that the chat template refuses.
    """
    with files.atomic(tokens) as out:
        return _tokenise(rows, out, tokenizer, limits)


def count_tokens(rows: Path, tokenizer: ChatTokenizer, limits: Limits | None = None) -> Counts:
    """What `write_tokens` counts, without a file. Raises what it raises."""
    with Path(os.devnull).open("wb") as out:
        return _tokenise(rows, out, tokenizer, limits)


def _tokenise(
    rows: Path, out: IO[bytes], tokenizer: ChatTokenizer, limits: Limits | None
) -> Counts:
    total = Counts()
    size = rows.stat().st_size
    with progress("tokenising", size, "bytes") as shown:
        done = 0
        for counts, encoded, read in _encoded(rows, size, tokenizer, limits):
            out.write(encoded)
            total += counts
            done += read
            shown.update(done, rows=f"{total.rows:,}")
    return total


def refuse_useless(counts: Counts, rows: Path, limits: Limits) -> None:
    """Raise DataError where training on these tokens would teach nothing, or never to stop."""
    if counts.kept == 0:
        raise DataError(
            f"{rows}: nothing is left to train on: of {counts.rows:,} rows {counts.dropped_long:,} "
            f"are longer than {limits.longest:,} tokens (--max-seq-len, --tokens), "
            f"{counts.dropped_short:,} shorter than {limits.shortest}, and "
            f"{counts.dropped_masked:,} have no token that counts in the loss"
        )
    if counts.stops == 0:
        raise NeverStopsError(rows)
    if counts.calls and counts.calls_lost == counts.calls:
        raise InvalidRowError(
            rows,
            counts.lost_line,
            f"none of the {counts.calls:,} tool calls is in what is learnt: the chat template "
            "leaves them out; give one that renders tool_calls with --chat-template, or leave "
            "such rows out",
        )


def _encoded(
    rows: Path, size: int, tokenizer: ChatTokenizer, limits: Limits | None
) -> Iterator[tuple[Counts, bytes, int]]:
    chunks = _chunks(rows)
    processes = min(len(os.sched_getaffinity(0)), 8)
    if processes == 1 or size < _BYTES_FOR_PROCESSES:
        _start(tokenizer, limits, rows)
        yield from map(_encode, chunks)
        return
    # Spawned, not forked: torch's threads may be running in this process already.
    with ProcessPoolExecutor(
        processes,
        get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), tokenizer, limits, rows),
    ) as pool:
        waiting: deque[Future[tuple[Counts, bytes, int]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_encode, chunk))
            if len(waiting) >= 2 * processes:  # what is in flight bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunks(rows: Path) -> Iterator[tuple[int, list[bytes]]]:
    with rows.open("rb") as file:
        first = 1
        while lines := list(islice(file, _ROWS_A_CHUNK)):
            yield first, lines
            first += len(lines)


_work: tuple[ChatTokenizer, Limits | None, Path]


def _start(tokenizer: ChatTokenizer, limits: Limits | None, rows: Path) -> None:
    global _work
    _work = (tokenizer, limits, rows)


def _start_worker(parent: int, tokenizer: ChatTokenizer, limits: Limits | None, rows: Path) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent acts on it
    _start(tokenizer, limits, rows)


def _encode(chunk: tuple[int, list[bytes]]) -> tuple[Counts, bytes, int]:
    import orjson

    tokenizer, limits, path = _work
    first, lines = chunk
    try:
        encoded = tokenizer.encode([orjson.loads(line) for line in lines])
    except TemplateError as error:
        message, index = error.args
        raise InvalidRowError(path, first + index, message) from error
    counts = Counts(rows=len(lines))
    out = []
    for line, row in enumerate(encoded, first):
        length, trained = len(row.ids), row.trained
        if limits and length > limits.longest:
            counts.dropped_long += 1
        elif limits and length < limits.shortest:
            counts.dropped_short += 1
        elif limits and trained == 0:
            counts.dropped_masked += 1
        else:
            counts.tokens += length
            counts.tokens_trained += trained
            counts.turns += row.turns
            counts.stops += row.stops
            if row.stops < row.turns:
                counts.endless_line = counts.endless_line or line
            counts.calls += row.calls
            counts.calls_lost += row.calls_lost
            if row.calls_lost:
                counts.lost_line = counts.lost_line or line
            counts.longest = max(counts.longest, length)
            counts.highest = max(counts.highest, *row.ids)
            out.append(orjson.dumps({"input_ids": row.ids, "labels": row.labels, "len": length}))
    written = b"\n".join(out) + b"\n" if out else b""
    return counts, written, sum(map(len, lines))
