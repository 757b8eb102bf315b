"""Every format gives the same rows, named by their place in the file."""

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steps.dataset import reader
from steps.dataset.pieces import LONGEST_ROW, PIECE
from steps.errors import DataError
from tests.dataset_runs import chat, command, jsonl, prepare, read, rows, turns, write

ROWS = [chat(f"{number} é\n,\"' {'x' * number}") for number in range(1200)]


def as_csv(separator: str) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, delimiter=separator)
            out.writerow(["id", "messages"])
            out.writerows([n, json.dumps(row["messages"])] for n, row in enumerate(ROWS))

    return written


def as_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=700)


def as_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=700)


FORMATS: dict[str, Callable[[Path], Any]] = {
    "plain.jsonl": lambda path: path.write_bytes(jsonl(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS)),
    "windows.jsonl": lambda path: path.write_bytes(jsonl(ROWS).replace(b"}\n", b"}\r\n")),
    "unended.jsonl": lambda path: path.write_bytes(jsonl(ROWS).rstrip()),
    "lines.json": lambda path: path.write_bytes(jsonl(ROWS)),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "indented.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "lines.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(ROWS))),
    "lines.jsonl.zst": lambda path: path.write_bytes(
        pa.compress(jsonl(ROWS), "zstd", asbytes=True)
    ),
    "pzstd.jsonl.zst": lambda path: path.write_bytes(
        # A skippable frame goes before each frame: its length, and then the size of what follows.
        b"\x50\x2a\x4d\x18\x04\0\0\0size" + pa.compress(jsonl(ROWS), "zstd", asbytes=True)
    ),
    "no-suffix": lambda path: path.write_bytes(jsonl(ROWS)),
    "wrong-suffix.jsonl": lambda path: path.write_bytes(gzip.compress(jsonl(ROWS))),
    "table.csv": as_csv(","),
    "table.tsv": as_csv("\t"),
    "table": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "semicolons": as_csv(";"),
    "tabs.csv": as_csv("\t"),
    "commas.tsv": as_csv(","),
    "table.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "table.arrow": as_arrow,
    "stream.arrow": as_arrow_stream,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_in_their_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    result = prepare(tmp_path / "run", path, data_split=1.0)
    assert rows(tmp_path / "run") == ROWS
    assert result.metrics["rows_read"] == len(ROWS)


def test_tables_with_other_columns_are_read_for_the_chats(tmp_path: Path) -> None:
    table = [{"instruction": "q", "output": "a", "score": 1.5, "picture": b"\xff\xfe"}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "in.parquet")
    prepare(tmp_path / "run", tmp_path / "in.parquet")
    assert rows(tmp_path / "run") == [{"messages": turns("q", "a")}]


def test_tool_calls_come_out_of_parquet_without_nulls_of_other_rows(tmp_path: Path) -> None:
    def calling(arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"messages": [*turns("q"), answer]}

    table = [calling({"city": "x"}), calling({"n": 3}), chat(1)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "in.parquet")
    prepare(tmp_path / "run", tmp_path / "in.parquet", data_split=1.0)
    for row in table[:2]:
        row["messages"][1]["content"] = ""
    assert rows(tmp_path / "run") == table


def test_text_that_a_table_holds_as_bytes_is_text(tmp_path: Path) -> None:
    table = pa.table({"instruction": [b"q", b"q", b"\xe9"], "output": [b"a", "é".encode(), b"a"]})
    pq.write_table(table, tmp_path / "in.parquet")
    prepare(tmp_path / "run", tmp_path / "in.parquet", on_invalid="skip", data_split=1.0)
    assert rows(tmp_path / "run") == [{"messages": turns("q", a)} for a in ("a", "é")]
    [rejected] = read(tmp_path / "run" / "dataset" / "rejected.jsonl")
    assert rejected["reason"].startswith("not UTF-8: byte 0xe9")


def test_a_cell_too_many_is_no_part_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("instruction,output\nq,Hello, world\nq,a,,\n")
    prepare(tmp_path / "run", path, on_invalid="skip", data_split=1.0)
    assert rows(tmp_path / "run") == [{"messages": turns("q", "a")}]
    [rejected] = read(tmp_path / "run" / "dataset" / "rejected.jsonl")
    assert rejected["reason"].startswith("more cells than columns")


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_that_was_cut_off_between_two_batches_is_not_taken_for_whole(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "in.arrow"
    table = pa.Table.from_pylist(ROWS)
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as out:
        out.write_table(table.slice(0, 700))
        whole = file.tell()
        out.write_table(table.slice(700))
    path.write_bytes(path.read_bytes()[:whole])
    with pytest.raises(DataError, match=r"in\.arrow: broken: its end is missing"):
        prepare(tmp_path / "run", path)


def test_arrow_without_a_dictionary_that_it_refers_to_is_a_broken_file(tmp_path: Path) -> None:
    texts = pa.array(["q"]).dictionary_encode()
    table = pa.table({"instruction": texts, "output": texts})
    whole = pa.BufferOutputStream()
    with pa.ipc.new_stream(whole, table.schema) as out:
        out.write_table(table)
    schema, first, _, batch = pa.ipc.MessageReader.open_stream(whole.getvalue())
    messages = b"".join(one.serialize() for one in (schema, first, first, batch))
    (tmp_path / "in.arrow").write_bytes(messages + b"\xff\xff\xff\xff\0\0\0\0")
    with pytest.raises(DataError, match=r"in\.arrow: broken: .*with id"):
        prepare(tmp_path / "run", tmp_path / "in.arrow")


@pytest.mark.parametrize("name", ["array.json", "table.csv", "table.parquet", "table.arrow"])
def test_long_rows_are_taken_few_at_a_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    long = [chat(f"{number}" * (PIECE // 2)) for number in range(10, 20)]
    table = pa.table({"messages": [json.dumps(row["messages"]) for row in long]})
    if name == "table.arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
    elif name == "table.parquet":
        pq.write_table(table, path)
    elif name == "table.csv":
        with path.open("w", newline="") as text:
            csv.writer(text).writerows(
                [["messages"], *([json.dumps(row["messages"])] for row in long)]
            )
    else:
        path.write_text(json.dumps(long))
    assert max(len(piece.rows()) for piece in reader.pieces(name, path)) == 1
    prepare(tmp_path / "run", path, data_split=1.0)
    assert rows(tmp_path / "run") == long


def test_columns_of_json_are_read(tmp_path: Path) -> None:
    texts = pa.array([json.dumps(turn) for turn in turns("q", "a")])
    values = pa.ExtensionArray.from_storage(pa.json_(), texts)
    messages = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), values)
    pq.write_table(pa.table({"messages": messages}), tmp_path / "in.parquet")
    prepare(tmp_path / "run", tmp_path / "in.parquet")
    assert rows(tmp_path / "run") == [{"messages": turns("q", "a")}]


def test_a_table_without_a_chat_says_which_columns_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"in\.parquet: row 1: missing .*keys: text, label"):
        prepare(tmp_path / "run", tmp_path / "in.parquet")


def test_rows_that_span_pieces_are_neither_lost_nor_read_twice(tmp_path: Path) -> None:
    lengths = [PIECE - 200, 3 * PIECE, 10, PIECE // 2, 2 * PIECE, 5]
    long = [chat("x" * length + str(length)) for length in lengths]
    prepare(tmp_path / "run", write(tmp_path / "in.jsonl", long), data_split=1.0)
    assert rows(tmp_path / "run") == long


def test_lines_that_end_where_a_piece_ends_are_read_once(tmp_path: Path) -> None:
    line = jsonl([chat(1)])
    exact = jsonl([chat("x" * (PIECE - len(line) * 2 + 1))])
    content = line + exact.replace(b"x", b"", len(line) + len(exact) - PIECE)
    assert len(content) == PIECE
    (tmp_path / "in.jsonl").write_bytes(content + jsonl([chat(2), chat(3)]))
    result = prepare(tmp_path / "run", tmp_path / "in.jsonl")
    assert result.metrics["rows_read"] == 4


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_of_absurd_length_is_refused_and_the_rest_read(tmp_path: Path, packed: bool) -> None:
    long = b'{"messages": [' + b" " * (LONGEST_ROW + PIECE * 3) + b"]}\n"
    content = jsonl([chat(1)]) + long + jsonl([chat(2)])
    path = tmp_path / "in.jsonl"
    path.write_bytes(pa.compress(content, "zstd", asbytes=True) if packed else content)
    prepare(tmp_path / "run", path, on_invalid="skip", data_split=1.0)
    assert rows(tmp_path / "run") == [chat(1), chat(2)]
    [rejected] = read(tmp_path / "run" / "dataset" / "rejected.jsonl")
    assert (rejected["line"], rejected["reason"]) == (2, "longer than 16 MiB")


def test_an_array_is_read_whole_wherever_its_pieces_end(tmp_path: Path) -> None:
    numbers = random.Random(7)
    tricky = '"}, {"messages": [}], ] \\" {"x":\\'

    def value(depth: int) -> Any:
        kind = numbers.randrange(6 if depth else 2)
        if kind < 2:
            return tricky * numbers.randrange(3)
        if kind < 4:
            return [value(depth - 1) for _ in range(numbers.randrange(4))]
        return {key: value(depth - 1) for key in numbers.sample(("messages", "x", "y"), 2)}

    for indent in (None, 0, 3):
        lengths = [*numbers.choices((0, 100, 40_000), k=150), PIECE * 3]
        numbers.shuffle(lengths)
        elements: list[Any] = [
            {"messages": value(3), "x": tricky + "a" * length} for length in lengths
        ]
        elements[50:50] = [None, 7, "text", [], [{"messages": []}, {"messages": tricky}], {}]
        path = tmp_path / "in.json"
        path.write_text(f" \n{json.dumps(elements, indent=indent)} \n")
        found = [row for piece in reader.pieces("in.json", path) for row in piece.rows()]
        assert [json.loads(row) for row in found] == elements


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [("x",), ("x", "y", "z")])
def test_an_array_is_read_a_piece_at_a_time(
    tmp_path: Path, indent: int | None, keys: tuple[str, ...]
) -> None:
    elements = [
        {keys[number % len(keys)]: 1, **chat(f"{number} {'x' * 999}")} for number in range(5000)
    ]
    path = tmp_path / "in.json"
    path.write_text(json.dumps(elements, indent=indent))
    sizes = [piece.size for piece in reader.pieces("in.json", path)]
    assert sum(sizes) == path.stat().st_size
    assert max(sizes) <= PIECE * 2


def test_a_fault_deep_in_an_array_is_told_by_its_line(tmp_path: Path) -> None:
    text = json.dumps([chat("x" * 1000) for _ in range(3000)], indent=1)
    lines = text.splitlines()
    lines[20_000] = lines[20_000].replace(":", ";").replace("}", "]")
    (tmp_path / "in.json").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"in\.json:20001: the JSON array is broken: JSON is malf"):
        prepare(tmp_path / "run", tmp_path / "in.json")
    (tmp_path / "in.json").write_text(text + text)
    with pytest.raises(DataError, match=rf"in\.json:{len(lines)}: .* broken: .*trailing"):
        prepare(tmp_path / "run", tmp_path / "in.json")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("page.jsonl", b"<!DOCTYPE html><html></html>", "a web page"),
        ("in.json", b'[{"messages": []},\n{"mess', r"in\.json:2: the JSON array is broken"),
        ("in.json", b'[{"messages": []},\n oops]', r"in\.json:2: the JSON array is broken"),
        (
            "in.json",
            b"[,%b]" % jsonl([chat("x" * 2 * PIECE)]),
            r"in\.json:1: the JSON array is broken",
        ),
        ("in.json", b"[" * 10**6, "the JSON array is broken"),
        ("in.parquet", b"PAR1 and then nothing", r"in\.parquet: broken"),
        ("in.arrow", b"ARROW1\0\0 and then nothing", r"in\.arrow: broken"),
        ("in.jsonl.gz", gzip.compress(jsonl(ROWS))[:-30], r"in\.jsonl\.gz: broken"),
        ("in.jsonl.gz", b"\x1f\x8b\x08 and no more of it", r"in\.jsonl\.gz: broken"),
        ("in.zip", b"PK\x03\x04....", "a zip archive"),
        ("in.jsonl", jsonl([chat(1)]).decode().encode("utf-16"), "UTF-16"),
        ("in.bin", b"\x00\x01\x02", "unknown format"),
        ("in.jsonl", b"", "the data set is empty"),
        ("in.json", b"[]", "the data set is empty"),
        ("in.jsonl", b"\n \n", "the data set is empty"),
        ("in.csv", b"messages\n", "the data set is empty"),
        ("in.csv", b"messages\n\xff\xfe\n", r"in\.csv: row 1: not UTF-8: byte 0xff"),
        (
            "in.csv",
            b'output,instruction\na,"q\nb,r\n',
            r"in\.csv:3: broken: unexpected end of data",
        ),
        ("in.csv", b'output,instruction\na,"a "q" b"\n', r"in\.csv:2: broken: ',' expected"),
        ("in.csv", b"output,instruction,output\na,q,b\n", "2 columns are named 'output'"),
        ("in.json", b'{\n "data": [\n {"messages": []}\n]}', "a JSON object over several lines"),
    ],
)
def test_a_broken_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        prepare(tmp_path / "run", tmp_path / name)
    assert [path.name for path in (tmp_path / "run" / "dataset").iterdir()] == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_with_wrong_bytes_in_it_is_read_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    content = path.read_bytes()
    numbers = random.Random(name)
    for _ in range(20):
        damaged = bytearray(content)
        for _ in range(3):
            start = numbers.randrange(len(damaged))
            damaged[start : start + numbers.randint(0, 60)] = numbers.randbytes(8)
        path.write_bytes(damaged)
        try:
            for piece in reader.pieces(name, path):
                assert isinstance(piece.rows(), list)
        except DataError as error:
            assert name in str(error)  # both outcomes are right


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet", "in.csv"])
def test_a_table_of_no_schema_is_told_by_all_its_columns(tmp_path: Path, name: str) -> None:
    row = {"instruction": "q", "context": "c", "response": "a"}
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif name.endswith(".csv"):
        path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    else:
        path.write_bytes(jsonl([row]))
    with pytest.raises(DataError, match="has the keys: instruction, context, response"):
        prepare(tmp_path / "run", path)


def test_unmask_is_read_from_a_table_of_text(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("prompt,completion,unmask\nq,a,True\nr,b,false\ns,c,\n")
    prepare(tmp_path / "run", path, data_split=1.0)
    assert [row.get("unmask") for row in rows(tmp_path / "run")] == [True, False, None]
    path.write_text("prompt,completion,unmask\nq,a,yes\n")
    with pytest.raises(DataError, match="'unmask' must be true or false"):
        prepare(tmp_path / "other", path)


@pytest.mark.parametrize("name", ["table.parquet", "table.arrow", "stream.arrow"])
def test_columns_that_no_schema_reads_may_hold_what_they_will(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    beyond = pa.array([2**62] * len(ROWS), pa.timestamp("ms"))  # no time that Python could tell
    table = pa.Table.from_pylist(ROWS).append_column("at", beyond).append_column("at", beyond)
    if name.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if name.startswith("table") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as out:
            out.write_table(table)
    prepare(tmp_path / "run", path, data_split=1.0)
    assert rows(tmp_path / "run") == ROWS
    # Where no schema fits, all columns are read.
    table = table.select([1]).append_column("text", pa.array(["x"] * len(ROWS)))
    if name.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as out:
            out.write_table(table)
    with pytest.raises(DataError, match=rf"{name}: broken: "):
        prepare(tmp_path / "other", path)


def test_what_a_label_calls_undesired_is_not_learnt_from_a_table_either(tmp_path: Path) -> None:
    table = {"prompt": ["q", "r"], "completion": ["a", "b"], "label": [True, False]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("prompt,completion,label\nq,a,True\nr,b,False\n")
    for name in ("in.parquet", "in.csv"):
        prepare(tmp_path / name[3:], tmp_path / name, on_invalid="skip")
        assert rows(tmp_path / name[3:]) == [{"messages": turns("q", "a")}]


def test_a_table_without_columns_is_refused_whatever_number_of_rows_it_claims(
    tmp_path: Path,
) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({}), path)
    # Numbers of 64 bits in its footer, as Thrift writes them: 0 becomes -2.
    path.write_bytes(path.read_bytes().replace(b"\x16\0", b"\x16\x03"))
    assert pq.read_metadata(path).num_rows == -2
    found = command(tmp_path / "run", path)
    assert found.returncode == 65
    assert "in.parquet: it has no columns" in found.stderr
