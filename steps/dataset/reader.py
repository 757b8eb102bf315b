"""Files of any format as pieces of JSON rows.

A file's content tells its format and whether it is compressed; its name is asked only where the
content leaves it open.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum, auto
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from steps.dataset.pieces import LONGEST_ROW, PIECE, Block, Range
from steps.dataset.schemas import KEYS, SURPLUS
from steps.errors import DataError

if TYPE_CHECKING:
    import msgspec

COLUMNS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output",
           "history", "system", "tools", "functions", "label", "unmask")  # fmt: skip
"""What some schema reads: tables of columns are not read beyond it."""

_ROWS = 500
"""Rows of a table that are taken at a time, where they are short."""
_HEAD = 64 << 10
_OPENING = re.compile(rb'\s*(\{\s*"[^"\\]+")')
"""How the first element of an array begins, where it is an object."""
_BETWEEN = 1 << 10
"""Bytes of white space that are looked through between two elements of an array."""
_MOST_CUTS = 100
"""Places of a piece that are tried before more is read; fewer of a longer one: each takes as long as it."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2",
                 b"\x50\x2a\x4d\x18": "zstd"}  # fmt: skip  # the last is pzstd's, before each frame
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_OTHERS = {b"PK\x03\x04": "a zip archive", b"\xfd7zXZ": "compressed by xz", b"%PDF": "a PDF",
           b"7z\xbc\xaf": "a 7z archive", codecs.BOM_UTF16_LE: "UTF-16 text",
           codecs.BOM_UTF16_BE: "UTF-16 text"}  # fmt: skip
_SEPARATORS = {"csv": ",\t;", "tsv": "\t,;"}
"""By a name's ending, the likeliest first: Excel writes semicolons where the comma is in numbers."""
_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


class Format(StrEnum):
    """How rows stand in a file."""

    LINES = auto()
    ARRAY = auto()
    CSV = auto()
    PARQUET = auto()
    ARROW = auto()


def pieces(name: str, path: Path) -> Iterator[Block | Range]:
    """The rows of a file, in their order, in pieces.

    Raises DataError where the file is of no known format, or broken as a whole.
    """
    try:
        compression = _compression(path)
        found = _format(name, _head(path, compression))
        if found is Format.LINES and compression is None:
            yield from _ranges(path)
        else:
            yield from _READERS[found](name, path, compression)
    except MemoryError as error:
        raise DataError(
            f"{name}: too large for the memory, or broken so that it seems to be"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow's, of what it unpacks.
        raise DataError(f"{name}: broken: {error}; copy or download it again") from error
    except Exception as error:
        arrow = sys.modules.get("pyarrow")  # its own errors are also KeyError, TypeError and others
        # OverflowError: a time that is beyond Python's.
        known = (ValueError, OverflowError, *((arrow.ArrowException,) if arrow else ()))
        if isinstance(error, known):
            raise DataError(f"{name}: broken: {error}; copy or download it again") from error
        raise


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(6)
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def _head(path: Path, compression: str | None) -> bytes:
    with _open(path, compression)[0] as file:
        return file.read(_HEAD)


def _open(path: Path, compression: str | None) -> tuple[io.BufferedReader, Callable[[], int]]:
    """The unpacked bytes of a file, and how many of its own bytes have been read so far."""
    if compression is None:
        plain = path.open("rb")
        return plain, plain.tell
    import pyarrow as pa

    packed = pa.OSFile(str(path))
    return io.BufferedReader(pa.CompressedInputStream(packed, compression), PIECE), packed.tell


def _format(name: str, head: bytes) -> Format:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    ending = _ending(name)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{name}: it is {what}: give JSON lines, JSON, Parquet, CSV or Arrow")
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if head.startswith((_ARROW_FILE, b"\xff\xff\xff\xff")):
        return Format.ARROW
    if _PAGE.match(text):
        raise DataError(
            f"{name}: it is a web page (HTML), not data: what should have been the file may be a "
            "login page or a page about it"
        )
    if ending in _SEPARATORS:
        return Format.CSV
    if text.startswith(b"["):
        return Format.ARRAY
    if text.startswith((b"{\n", b"{\r\n")):
        raise DataError(
            f"{name}: it is a JSON object over several lines, not rows: give a list of rows, or one "
            "row a line"
        )
    if not text or text.startswith(b"{") or ending in ("json", "jsonl", "ndjson"):
        return Format.LINES
    if _separator(name, head):
        return Format.CSV
    raise DataError(f"{name}: unknown format: it is not JSON lines, JSON, Parquet, CSV or Arrow")


def _separator(name: str, head: bytes) -> str:
    """What separates the columns of a table of text: its header tells; empty if it has none of ours."""
    header = (
        head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0].decode(errors="replace")
    )
    for separator in _SEPARATORS.get(_ending(name), ",\t;"):
        if set(COLUMNS) & {cell.strip(' "\r') for cell in header.split(separator)}:
            return separator
    return ""


def _ending(name: str) -> str:
    return re.sub(r"\.(gz|zst|zstd|bz2)$", "", name.lower()).rpartition(".")[2]


def _ranges(path: Path) -> Iterator[Range]:
    size = path.stat().st_size
    for start in range(0, size, PIECE):
        yield Range(path, start, min(start + PIECE, size))


def _lines(name: str, path: Path, compression: str | None) -> Iterator[Block]:  # noqa: ARG001
    file, position = _open(path, compression)
    with file:
        begun, length, done = [file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)], 0, 0
        while data := file.read(PIECE):
            first, newline, others = data.partition(b"\n")
            if length <= LONGEST_ROW:  # a row above it is refused, so the rest of it may go
                begun.append(first)
                length += len(first)
            if newline:
                *lines, last = others.split(b"\n")
                yield Block([b"".join(begun), *lines], position() - done)
                begun, length, done = [last], len(last), position()
        if any(begun):
            yield Block([b"".join(begun)], position() - done)


def _array(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    file, position = _open(path, compression)
    with file:
        done = 0
        for lines in _grouped(_elements(name, file)):
            yield Block(lines, position() - done, "row")
            done = position()


def _elements(name: str, file: IO[bytes]) -> Iterator[bytes]:
    """The elements of a JSON array that is read a piece at a time."""
    before, _, text = file.read(_HEAD).removeprefix(codecs.BOM_UTF8).partition(b"[")
    newlines = before.count(b"\n")
    first = _OPENING.match(text)
    opening = first[1] if first else b"{"
    while data := file.read(max(PIECE, len(text))):  # twice as much where an element is longer
        text += data
        tries = max(_MOST_CUTS * PIECE // len(text), 2)
        for cut in islice(_cuts(text, opening), tries):
            if rows := _decoded(name, newlines, text[:cut], b"]"):
                yield from map(bytes, rows)
                newlines += text.count(b"\n", 0, cut)
                text = text[cut + 1 :]
                break
    yield from map(bytes, _decoded(name, newlines, text) or ())


def _cuts(text: bytes, opening: bytes) -> Iterator[int]:
    """Commas that may stand between two elements, the last one first.

    Most often the next element begins as the first one did; else any object may be it.
    """
    for begun in dict.fromkeys((opening, b"{")):
        at = len(text)
        for _ in range(PIECE):  # a longer text may be all braces: to look at each takes minutes
            if (at := text.rfind(begun, 0, at)) <= 0:
                break
            start = max(at - _BETWEEN, 0)
            between = text[start:at].rstrip()
            if between.endswith(b","):
                yield start + len(between) - 1


def _decoded(name: str, newlines: int, text: bytes, end: bytes = b"") -> "list[msgspec.Raw] | None":
    """The elements of a part of an array; None where it was cut off within one of them.

    It lies behind so many `newlines` of the file, and has no `end`, if it is not the last.
    """
    import msgspec

    try:
        return msgspec.json.decode(b"[" + text + end, type=list[msgspec.Raw])
    except (ValueError, RecursionError) as error:
        place = re.search(r" \(byte (\d+)\)$", str(error))
        at = int(place[1]) - 1 if place else len(text)
        if end and at >= len(text) and not isinstance(error, RecursionError):
            return None
        line = newlines + text.count(b"\n", 0, max(at, 0)) + 1
        problem = str(error).removesuffix(place[0] if place else "")
        raise DataError(f"{name}:{line}: the JSON array is broken: {problem}") from error


def _csv(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    separator = _separator(name, _head(path, compression)) or _SEPARATORS[_ending(name)][0]
    csv.field_size_limit(sys.maxsize)  # the default, 128 KB, is less than a long chat
    file, position = _open(path, compression)
    # Bytes that are no text are kept as they are: the check of rows tells of them by row.
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    with text:
        done = 0
        # Strict: else a quote that is left open swallows the rows after it.
        rows = csv.DictReader(text, delimiter=separator, restkey=SURPLUS, strict=True)
        try:
            _refuse_doubles(name, rows.fieldnames or ())
            for lines in _grouped(_json(_within_header(row)) for row in rows):
                yield Block(lines, position() - done, "row")
                done = position()
        except csv.Error as error:
            raise DataError(
                f"{name}:{rows.reader.line_num}: broken: {error}: a cell with a quote in it must stand in "
                "quotes, and each quote in it twice"
            ) from error


def _within_header(row: dict[str, Any]) -> dict[str, Any]:
    """Without cells beyond the header's, where these are empty."""
    if SURPLUS in row and not any(row[SURPLUS]):
        del row[SURPLUS]
    return row


def _parquet(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    import pyarrow.parquet as pq

    if compression:
        raise DataError(
            f"{name}: Parquet inside {compression}: unpack it; Parquet is compressed itself"
        )
    with pq.ParquetFile(path, memory_map=True) as table:
        columns = table.schema_arrow.names
        named = [columns[index] for index in _read_columns(name, columns)]
        share = path.stat().st_size // max(table.metadata.num_rows, 1)
        for group in range(table.num_row_groups):
            described = table.metadata.row_group(group)
            batches = table.iter_batches(
                _at_a_time(described.num_rows, described.total_byte_size),
                row_groups=[group],
                columns=named or None,
            )
            for lines in _grouped(line for batch in batches for line in _rows(batch)):
                yield Block(lines, share * len(lines), "row")


def _arrow(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    import pyarrow as pa

    if compression:
        file, position = _open(path, compression)
    else:
        file = pa.memory_map(str(path))  # a batch may be as large as the file
        position = file.tell
    with file:
        # A file of Arrow begins with its name, padded to 8 bytes, and goes on as a stream does.
        streamed = not _head(path, compression).startswith(_ARROW_FILE)
        if not streamed:
            file.read(8)
        # Without its end, a stream that was cut off between two batches looks whole.
        if not compression and not _end(path).endswith(
            _ARROW_STREAM_END if streamed else _ARROW_FILE
        ):
            raise DataError(
                f"{name}: broken: its end is missing: it was cut off, or is still being written"
            )
        done = 0
        stream = pa.ipc.open_stream(file)
        named = _read_columns(name, stream.schema.names)
        for lines in _grouped(line for batch in stream for line in _rows(batch.select(named))):
            yield Block(lines, position() - done, "row")
            done = position()


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(_ARROW_STREAM_END), 0))
        return file.read()


def _read_columns(name: str, columns: Sequence[str]) -> list[int]:
    """Which columns of a table are read: what lies in others is of no concern, and may be anything.

    Where no schema fits, all: the rows are refused by the names that they have.
    """
    if not columns:  # nothing then holds the number of rows against their bytes
        raise DataError(
            f"{name}: it has no columns, so there is nothing to learn: check what wrote it"
        )
    _refuse_doubles(name, columns)
    fits = any(set(keys) <= set(columns) for keys in KEYS.values())
    return [index for index, column in enumerate(columns) if column in COLUMNS or not fits]


def _refuse_doubles(name: str, columns: Iterable[str]) -> None:
    for column, times in Counter(columns).items():
        if times > 1 and column in COLUMNS:
            raise DataError(f"{name}: {times} columns are named {column!r}: leave one of them")


def _at_a_time(rows: int, size: int) -> int:
    """How many rows of a table to turn into objects at once: few where they are long."""
    return max(1, min(_ROWS, PIECE * rows // max(size, 1)))


def _rows(batch: Any) -> Iterator[bytes]:
    batch.validate(full=True)  # Arrow trusts its bytes: offsets that lie would crash the process
    step = _at_a_time(batch.num_rows, batch.nbytes)
    for start in range(0, batch.num_rows, step):
        yield from map(_json, batch.slice(start, step).to_pylist())


def _json(row: dict[str, Any]) -> bytes:
    import orjson

    row = {name: _without_nulls(value) for name, value in row.items()}
    try:
        return orjson.dumps(row)
    except TypeError:  # bytes, what is not UTF-8, and types that no schema reads
        text = json.dumps(row, default=_text, ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape")


def _text(value: Any) -> str:
    """Of bytes the text that they are: many writers do not mark a column as text."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _without_nulls(value: Any) -> Any:
    """Without the keys of an object that are null.

    A table gives all objects of a column the same keys; null says that a row had none.
    """
    if isinstance(value, dict):
        return {name: _without_nulls(held) for name, held in value.items() if held is not None}
    if isinstance(value, list):
        return [_without_nulls(held) for held in value]
    return value


def _grouped(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As many lines at a time as make a piece: a row may be of a hundred bytes or of megabytes."""
    group, size = [], 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size >= PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


_READERS: dict[Format, Callable[[str, Path, str | None], Iterator[Block]]] = {
    Format.LINES: _lines,
    Format.ARRAY: _array,
    Format.CSV: _csv,
    Format.PARQUET: _parquet,
    Format.ARROW: _arrow,
}
