"""Files of any format as pieces of JSON rows.

A file's content tells its format and whether it is compressed; its name is asked only where the
content leaves it open.
"""

import codecs
import csv
import io
import json
import mmap
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum, auto
from itertools import islice
from pathlib import Path
from typing import Any

from steps.dataset.pieces import LONGEST_ROW, PIECE, Block, Range
from steps.errors import DataError

COLUMNS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output",
           "history", "system", "tools", "unmask")  # fmt: skip
"""What some schema reads: Parquet files need not be read beyond it."""

_ROWS = 500
"""Rows of a piece where rows have no bytes of their own."""
_HEAD = 64 << 10

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_OTHERS = {b"PK\x03\x04": "a zip archive", b"\xfd7zXZ": "compressed by xz", b"%PDF": "a PDF",
           b"7z\xbc\xaf": "a 7z archive", codecs.BOM_UTF16_LE: "UTF-16 text",
           codecs.BOM_UTF16_BE: "UTF-16 text"}  # fmt: skip
_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


class Format(StrEnum):
    """How rows stand in a file."""

    LINES = auto()
    ARRAY = auto()
    CSV = auto()
    TSV = auto()
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
    except (ValueError, NotImplementedError, csv.Error) as error:  # the first two are pyarrow's
        raise DataError(f"{name}: broken: {error}; copy or download it again") from error
    except MemoryError as error:
        raise DataError(
            f"{name}: too large for the memory, or broken so that it seems to be"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow's, of what it unpacks.
        raise DataError(f"{name}: broken: {error}; copy or download it again") from error


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
    ending = re.sub(r"\.(gz|zst|zstd|bz2)$", "", name.lower()).rpartition(".")[2]
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{name}: it is {what}: give JSON lines, JSON, Parquet, CSV or Arrow")
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Format.ARROW
    if _PAGE.match(text):
        raise DataError(
            f"{name}: it is a web page (HTML), not data: what should have been the file may be a "
            "login page or a page about it"
        )
    if ending in ("csv", "tsv"):
        return Format(ending)
    if text.startswith(b"["):
        return Format.ARRAY
    if not text or text.startswith(b"{") or ending in ("json", "jsonl", "ndjson"):
        return Format.LINES
    header = text.partition(b"\n")[0].decode(errors="replace")
    for format_, separator in ((Format.CSV, ","), (Format.TSV, "\t")):
        if set(COLUMNS) & {cell.strip(' "\r') for cell in header.split(separator)}:
            return format_
    raise DataError(f"{name}: unknown format: it is not JSON lines, JSON, Parquet, CSV or Arrow")


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
    import msgspec

    if compression:
        with _open(path, compression)[0] as stream:
            data: bytes | mmap.mmap = stream.read()
    else:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(data)[len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0 :]
    try:
        rows = msgspec.json.decode(view, type=list[msgspec.Raw])
    except (ValueError, RecursionError) as error:
        place = re.search(r"\(byte (\d+)\)", str(error))
        at = int(place[1]) if place else len(data)
        line = data[:at].count(b"\n") + 1
        raise DataError(f"{name}:{line}: the JSON array is broken: {error}") from error
    share = path.stat().st_size // max(len(rows), 1)
    for chunk in _chunks(rows):
        yield Block([bytes(row) for row in chunk], share * len(chunk), "row")


def _csv(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    separator = "\t" if _format(name, _head(path, compression)) is Format.TSV else ","
    csv.field_size_limit(sys.maxsize)  # the default, 128 KB, is less than a long chat
    file, position = _open(path, compression)
    # Bytes that are no text become half surrogates, which the check of rows tells of by row.
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    with text:
        done = 0
        for chunk in _chunks(csv.DictReader(text, delimiter=separator, restkey="")):
            yield Block([_json(row) for row in chunk], position() - done, "row")
            done = position()


def _parquet(name: str, path: Path, compression: str | None) -> Iterator[Block]:
    import pyarrow.parquet as pq

    if compression:
        raise DataError(
            f"{name}: Parquet inside {compression}: unpack it; Parquet is compressed itself"
        )
    with pq.ParquetFile(path, memory_map=True) as table:
        named = [column for column in table.schema_arrow.names if column in COLUMNS]
        share = path.stat().st_size // max(table.metadata.num_rows, 1)
        for batch in table.iter_batches(_ROWS, columns=named or None):
            yield _table(batch, share * batch.num_rows)


def _arrow(name: str, path: Path, compression: str | None) -> Iterator[Block]:  # noqa: ARG001
    import pyarrow as pa

    file, position = _open(path, compression)
    with file:
        done = 0
        streamed = not _head(path, compression).startswith(b"ARROW1")
        # A file of Arrow begins with its name, padded to 8 bytes, and goes on as a stream does.
        if not streamed:
            file.read(8)
        for batch in pa.ipc.open_stream(file):
            for start in range(0, batch.num_rows, _ROWS):
                yield _table(batch.slice(start, _ROWS), position() - done)
                done = position()


def _table(batch: Any, size: int) -> Block:
    batch.validate(full=True)  # Arrow trusts its bytes: offsets that lie would crash the process
    return Block([_json(row) for row in batch.to_pylist()], size, "row")


def _json(row: dict[str, Any]) -> bytes:
    import orjson

    row = {name: _without_nulls(value) for name, value in row.items()}
    try:
        return orjson.dumps(row)
    except TypeError:  # half surrogates, and types that no schema reads
        return json.dumps(row, default=str).encode()


def _without_nulls(value: Any) -> Any:
    """Without the keys of an object that are null.

    A table gives all objects of a column the same keys; null says that a row had none.
    """
    if isinstance(value, dict):
        return {name: _without_nulls(held) for name, held in value.items() if held is not None}
    if isinstance(value, list):
        return [_without_nulls(held) for held in value]
    return value


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _ROWS)):
        yield chunk


_READERS: dict[Format, Callable[[str, Path, str | None], Iterator[Block]]] = {
    Format.LINES: _lines,
    Format.ARRAY: _array,
    Format.CSV: _csv,
    Format.TSV: _csv,
    Format.PARQUET: _parquet,
    Format.ARROW: _arrow,
}
