"""Subset, duplicates and split: exact numbers, the same for the same seed."""

import errno
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from steps.dataset import intake, output, reader
from steps.dataset import split as splits
from steps.dataset.split import rows_to_train
from steps.errors import TransientError
from steps.workspace import Workspace
from tests.dataset_runs import chat, prepare, read, rows, turns, write


def split(workspace: Path) -> tuple[bytes, bytes]:
    folder = workspace / "dataset"
    return (folder / "train.jsonl").read_bytes(), (folder / "eval.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("number", "ratio", "train"),
    [
        (10, 0.7, 7),
        (10, 0.9, 9),
        (10, 1.0, 10),
        (3, 0.5, 2),
        (5, 0.5, 3),
        (2, 0.99, 1),
        (2, 0.01, 1),
        (1, 0.5, 1),
        (1000, 0.999, 999),
        (100, 0.29, 29),
        (100, 0.145, 15),
    ],
)
def test_the_split_is_what_one_reckons_by_hand(number: int, ratio: float, train: int) -> None:
    assert rows_to_train(number, ratio) == train


def test_both_splits_hold_the_rows_in_the_order_of_the_input(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(10)))
    result = prepare(tmp_path / "run", path, data_split=0.7)
    train, held_out = (
        [row["messages"][0]["content"] for row in read(tmp_path / "run" / "dataset" / name)]
        for name in ("train.jsonl", "eval.jsonl")
    )
    order = [f"question {number}" for number in range(10)]
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train + held_out) == order
    assert train == [text for text in order if text in train]
    assert held_out == [text for text in order if text in held_out]
    assert result.results == {"rows-train": "7", "rows-eval": "3"}
    for name, content in zip(("train", "eval"), split(tmp_path / "run"), strict=True):
        assert result.outputs[name].bytes == len(content)
        assert result.outputs[name].sha256 == hashlib.sha256(content).hexdigest()


def test_split_1_leaves_an_empty_held_out_file(tmp_path: Path) -> None:
    prepare(tmp_path / "run", write(tmp_path / "in.jsonl", map(chat, range(3))), data_split=1.0)
    assert split(tmp_path / "run")[1] == b""


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(50)))
    prepare(tmp_path / "a", path)
    prepare(tmp_path / "b", path)
    prepare(tmp_path / "c", path, seed=7)
    assert split(tmp_path / "a") == split(tmp_path / "b")
    assert split(tmp_path / "a") != split(tmp_path / "c")


def test_the_split_stays_the_same_for_ever(tmp_path: Path) -> None:
    """Whoever compares two runs months apart must compare them on the same held-out rows."""
    path = write(tmp_path / "in.jsonl", map(chat, range(12)))
    prepare(tmp_path / "run", path, data_split=0.75)
    held_out = read(tmp_path / "run" / "dataset" / "eval.jsonl")
    questions = [row["messages"][0]["content"] for row in held_out]
    assert questions == ["question 3", "question 4", "question 7"]


def test_the_order_of_the_input_does_not_move_rows_between_the_splits(tmp_path: Path) -> None:
    prepare(tmp_path / "a", write(tmp_path / "a.jsonl", map(chat, range(50))))
    prepare(tmp_path / "b", write(tmp_path / "b.jsonl", map(chat, reversed(range(50)))))
    for before, after in zip(split(tmp_path / "a"), split(tmp_path / "b"), strict=True):
        assert sorted(before.splitlines()) == sorted(after.splitlines())


def test_duplicates_are_removed_and_counted_however_they_are_written(tmp_path: Path) -> None:
    spaced = '{ "id": 9, "messages" : [ {"content": "question 3", "role": "user"}, {"role":"assistant","content":"answer\\u00203"}]}'
    path = write(tmp_path / "in.jsonl", [*map(chat, range(10)), *map(chat, range(10)), spaced])
    result = prepare(tmp_path / "run", path, data_split=0.5)
    assert result.metrics == {
        "rows_read": 21,
        "rows_train": 5,
        "rows_eval": 5,
        "rows_rejected": 0,
        "rows_duplicate": 11,
    }
    assert len({str(row) for row in rows(tmp_path / "run")}) == 10


def test_rows_that_differ_in_their_tools_are_no_duplicates(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    pair = [chat(1), chat(1) | {"tools": tools}]
    result = prepare(tmp_path / "run", write(tmp_path / "in.jsonl", pair))
    assert result.metrics["rows_duplicate"] == 0


def test_a_subset_is_drawn_by_the_seed_before_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(100)))
    result = prepare(tmp_path / "a", path, subset=20, data_split=0.7)
    assert (result.metrics["rows_train"], result.metrics["rows_eval"]) == (14, 6)
    assert result.metrics["rows_read"] == 100
    drawn = {str(row) for row in rows(tmp_path / "a")}
    assert drawn != {str(chat(number)) for number in range(20)}
    prepare(tmp_path / "b", path, subset=20, data_split=0.7, seed=1)
    assert drawn != {str(row) for row in rows(tmp_path / "b")}


def test_a_subset_above_the_number_of_rows_takes_all(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(4)))
    assert prepare(tmp_path / "run", path, subset=9, data_split=1.0).metrics["rows_train"] == 4


def test_several_processes_make_the_same_bytes_as_one(tmp_path: Path) -> None:
    many = [{"messages": turns(f"{number} " + "x" * 3000, "a")} for number in range(10_000)]
    many[9000] = many[5]
    path = write(tmp_path / "in.jsonl", [*many[:7000], {"text": "no chat"}, *many[7001:]])
    cores = os.sched_getaffinity(0)
    several = prepare(tmp_path / "several", path, on_invalid="skip")
    try:
        os.sched_setaffinity(0, {min(cores)})
        one = prepare(tmp_path / "one", path, on_invalid="skip")
    finally:
        os.sched_setaffinity(0, cores)
    assert split(tmp_path / "one") == split(tmp_path / "several")
    assert one.metrics == several.metrics
    assert one.details["statistics"] == several.details["statistics"]
    assert [row["line"] for row in read(tmp_path / "several/dataset/rejected.jsonl")] == [7001]
    assert one.metrics["rows_duplicate"] == 1


def test_a_file_that_changes_between_check_and_copy_gives_no_split(tmp_path: Path) -> None:
    compact = [json.dumps(chat(n), separators=(",", ":")) for n in range(10)]
    path = write(tmp_path / "in.jsonl", compact)
    pieces = ((path.name, piece) for piece in reader.pieces(path.name, path))
    found = intake.take_in(pieces, tmp_path, schema="auto", on_piece=lambda *_: None)
    distinct = splits.first_of_equals(found.kept.digests)
    verdicts = splits.choose(found.kept.digests, distinct, subset=0, ratio=0.9, seed=42)
    path.write_bytes(path.read_bytes().replace(b"question 7", b"question 8"))
    workspace = Workspace(tmp_path / "run")
    with pytest.raises(TransientError, match="it changed while it was read"):
        output.write_splits(found, verdicts, workspace)
    assert not workspace.train_rows.exists()


def test_a_disk_that_fails_while_a_split_is_written_leaves_no_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)  # what is sent early; the last sync then succeeds
    monkeypatch.setattr(output, "_LEAST", 1)
    monkeypatch.setattr(output, "_BEFORE_SYNC", 1)
    path = write(tmp_path / "in.jsonl", map(chat, range(10)))
    with pytest.raises(OSError, match=r"Input/output error.*train\.jsonl"):
        prepare(tmp_path / "run", path)
    assert not Workspace(tmp_path / "run").train_rows.exists()


def test_rows_in_and_out_of_canonical_form_keep_their_order(tmp_path: Path) -> None:
    compact = [json.dumps(chat(n), separators=(",", ":")) for n in range(50)]
    mixed = [chat(n) if n % 3 else compact[n] for n in range(50)]
    prepare(tmp_path / "run", write(tmp_path / "in.jsonl", mixed), data_split=1.0)
    assert split(tmp_path / "run")[0].decode().splitlines() == compact


def test_the_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    few = [{"messages": turns("q" * n, "a")} for n in range(1, 101)]
    few[0]["messages"].insert(0, {"role": "system", "content": "s"})
    found = prepare(tmp_path / "run", write(tmp_path / "in.jsonl", few)).details["statistics"]
    assert found["characters"] == {"minimum": 3, "median": 51, "p95": 96, "maximum": 101}
    assert found["turns"] == {"minimum": 2, "median": 2, "p95": 2, "maximum": 3}
    assert found["roles"] == {"user": 100, "assistant": 100, "system": 1}
    assert (found["with_system"], found["with_tools"]) == (0.01, 0.0)


def test_duplicates_stay_where_asked_for_all_on_one_side(tmp_path: Path) -> None:
    many = [chat(number % 40) for number in range(120)]
    path = write(tmp_path / "in.jsonl", many)
    result = prepare(tmp_path / "run", path, deduplicate="none", data_split=0.7)
    train, held_out = (Counter(content.splitlines()) for content in split(tmp_path / "run"))
    assert set(train.values()) == set(held_out.values()) == {3}
    assert not train.keys() & held_out.keys()
    assert result.metrics["rows_train"] == 84
    assert result.metrics["rows_duplicate"] == 0


@pytest.mark.parametrize("copies", [(1, 9), (9, 1), (5, 5), (1, 1, 8), (3, 3, 3, 1)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_both_sides_get_rows_however_many_copies_there_are(
    tmp_path: Path, copies: tuple[int, ...], ratio: float
) -> None:
    many = [chat(number) for number, times in enumerate(copies) for _ in range(times)]
    path = write(tmp_path / "in.jsonl", many)
    prepare(tmp_path / "run", path, deduplicate="none", data_split=ratio)
    train, held_out = (content.splitlines() for content in split(tmp_path / "run"))
    assert train and held_out and not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(many)


def test_copies_of_one_row_are_all_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(1)] * 5)
    assert prepare(tmp_path / "run", path, deduplicate="none").metrics["rows_train"] == 5


def test_a_subset_counts_copies(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(number % 5) for number in range(50)])
    prepare(tmp_path / "run", path, deduplicate="none", subset=17, data_split=1.0)
    assert len(rows(tmp_path / "run")) == 17


def test_copies_of_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(number % 5) for number in range(15)])
    held_out = write(tmp_path / "eval.jsonl", [chat(2), chat(2), chat(9)])
    result = prepare(tmp_path / "run", path, deduplicate="none", eval_uri=str(held_out))
    assert result.metrics["rows_train"] == 12
    assert result.metrics["rows_eval"] == 3
    assert result.metrics["rows_duplicate"] == 3


def test_very_long_chats_count_among_short_ones(tmp_path: Path) -> None:
    lengths = (2, 64, 66, 500, 2)
    several = [{"messages": turns(*(f"{n}: {i}" for i in range(n)))} for n in lengths]
    several[1]["messages"] += turns("one more")
    result = prepare(tmp_path / "run", write(tmp_path / "in.jsonl", several), deduplicate="none")
    found = result.details["statistics"]
    assert found["turns"] == {"minimum": 2, "median": 65, "p95": 500, "maximum": 500}
    assert found["roles"] == {"user": 318, "assistant": 317}
