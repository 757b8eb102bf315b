"""An eval set that is given instead of a split."""

import json
from pathlib import Path

import pytest

from steps.errors import DataError, UsageError
from tests.dataset_runs import chat, check, command, prepare, read, write


def splits(workspace: Path) -> tuple[list[object], list[object]]:
    folder = workspace / "dataset"
    return read(folder / "train.jsonl"), read(folder / "eval.jsonl")


def test_its_rows_are_held_out_and_all_others_trained_on(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", map(chat, range(10)))
    held_out = write(tmp_path / "held_out.jsonl", [chat(20), chat(3), chat(21), chat(20)])
    for ratio in (0.9, 1.0):
        result = prepare(tmp_path / "run", data, eval_uri=str(held_out), data_split=ratio)
        assert splits(tmp_path / "run") == (
            [chat(number) for number in range(10) if number != 3],
            [chat(20), chat(3), chat(21)],
        )
        assert result.metrics == {
            "rows_read": 14,
            "rows_train": 9,
            "rows_eval": 3,
            "rows_rejected": 0,
            "rows_duplicate": 2,
        }


def test_it_is_recorded_beside_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat(1)])
    held_out = write(tmp_path / "held_out.jsonl", [chat(2)])
    done = command(tmp_path / "run", data, f"--eval-uri={held_out}")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert {name: asset["uri"] for name, asset in record["inputs"].items()} == {
        "source": str(data),
        "eval_source": str(held_out),
    }
    assert record["details"]["source"]["uri"] == str(data)
    [file] = record["details"]["eval_source"]["files"]
    assert file["name"] == str(held_out)


def test_other_rows_in_it_make_another_result(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat(1)])
    held_out = write(tmp_path / "held_out.jsonl", [chat(2)])
    command(tmp_path / "run", data, f"--eval-uri={held_out}")
    write(held_out, [chat(2), chat(3)])
    assert "already done" not in command(tmp_path / "run", data, f"--eval-uri={held_out}").stderr
    assert splits(tmp_path / "run") == ([chat(1)], [chat(2), chat(3)])


def test_it_comes_from_any_source(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat(1)])
    for name in ("a", "b"):
        write(tmp_path / "claims" / "shared" / "sets" / f"{name}.jsonl", [chat(name)])
    bound = {"claims": tmp_path / "claims"}
    for uri in ("pvc://shared/sets", "pvc://shared/sets/a.jsonl\npvc://shared/sets/b.jsonl"):
        check(tmp_path / "run", data, bound, eval_uri=uri)
        prepare(tmp_path / "run", data, bound, eval_uri=uri)
        assert splits(tmp_path / "run") == ([chat(1)], [chat("a"), chat("b")])


def test_a_file_of_a_folder_can_be_held_out_from_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "data" / f"{name}.jsonl", [chat(f"{name}1"), chat(f"{name}2")])
    prepare(tmp_path / "run", tmp_path / "data", eval_uri=f"{tmp_path}/data/a.jsonl")
    assert splits(tmp_path / "run") == ([chat("b1"), chat("b2")], [chat("a1"), chat("a2")])


def test_a_subset_is_of_the_rows_to_train_on(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", map(chat, range(20)))
    held_out = write(tmp_path / "held_out.jsonl", map(chat, range(5)))
    result = prepare(tmp_path / "run", data, eval_uri=str(held_out), subset=10)
    assert (result.metrics["rows_train"], result.metrics["rows_eval"]) == (10, 5)


def test_it_goes_with_a_mix(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [chat(f"a{i}") for i in range(10)])
    second = write(tmp_path / "b.jsonl", [chat(f"b{i}") for i in range(10)])
    held_out = write(tmp_path / "held_out.jsonl", [chat("a0"), chat("b0"), chat("c0")])
    prepare(tmp_path / "run", f"3*{first} 1*{second}", eval_uri=str(held_out))
    train, found = splits(tmp_path / "run")
    assert (len(train), len(found)) == (12, 3)
    assert not any(row in found for row in train)


def test_its_rows_are_checked_too(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat(1)])
    held_out = write(tmp_path / "held_out.jsonl", [chat(2), {"text": "no chat"}])
    for run in (check, prepare):
        with pytest.raises(DataError, match=r"held_out\.jsonl:2: missing"):
            run(tmp_path / "run", data, eval_uri=str(held_out))
    prepare(tmp_path / "run", data, eval_uri=str(held_out), on_invalid="skip")
    assert splits(tmp_path / "run") == ([chat(1)], [chat(2)])


def test_a_set_that_leaves_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", map(chat, range(3)))
    with pytest.raises(DataError, match=r"data\.jsonl: nothing is left to train on"):
        prepare(tmp_path / "run", data, eval_uri=str(data))
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: the data set is empty"):
        prepare(tmp_path / "run", data, eval_uri=str(empty))


def test_what_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat(1)])
    with pytest.raises(UsageError, match=r"--data-split 0\.8: has no effect with --eval-uri"):
        check(tmp_path / "run", data, eval_uri="/x.jsonl", data_split=0.8)
    with pytest.raises(UsageError, match="--eval-uri: an eval set is taken whole"):
        check(tmp_path / "run", data, eval_uri="1*/x.jsonl")
