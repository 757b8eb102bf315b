"""Several sources: one after another, or mixed by weight."""

import json
from collections import Counter
from pathlib import Path

import pytest

from steps.dataset.selection import shares
from steps.errors import DataError, UsageError
from tests.dataset_runs import chat, check, command, prepare, rows, turns, write


def sources(folder: Path, **numbers: int) -> dict[str, Path]:
    """A file a source, whose rows begin with its name."""
    return {
        name: write(folder / f"{name}.jsonl", (chat(f"{name}{i}") for i in range(number)))
        for name, number in numbers.items()
    }


def taken(workspace: Path) -> dict[str, int]:
    """How many rows there are of each source; no row is there twice."""
    questions = [row["messages"][0]["content"] for row in rows(workspace)]
    assert len(set(questions)) == len(questions)
    return dict(Counter(question.removeprefix("question ")[0] for question in questions))


def test_sources_are_read_one_after_another(tmp_path: Path) -> None:
    found = sources(tmp_path, b=2, a=2)
    for separator in (" ", "\n", "\n  "):
        text = separator.join(map(str, found.values()))
        check(tmp_path / "run", text)
        prepare(tmp_path / "run", text, data_split=1.0)
        assert rows(tmp_path / "run") == [chat(name) for name in ("b0", "b1", "a0", "a1")]


@pytest.mark.parametrize(
    ("available", "weights", "limit", "numbers"),
    [
        ((700, 5000), ("0.7", "0.3"), 0, [700, 300]),
        ((5000, 300), ("0.7", "0.3"), 0, [700, 300]),
        ((10, 10), ("1", "1"), 0, [10, 10]),
        ((10, 10, 10), ("1", "1", "1"), 10, [4, 3, 3]),
        ((100, 100), ("0.9", "0.1"), 5, [5, 0]),
        ((100, 100), ("70", "30"), 11, [8, 3]),
        ((3, 100), ("1", "2"), 1000, [3, 6]),
        ((1, 1), ("999", "1"), 0, [1, 0]),
        ((0, 10), ("1", "1"), 0, [0, 0]),
        ((7,), ("0.1",), 0, [7]),
    ],
)
def test_shares_are_the_largest_that_repeat_no_row(
    available: tuple[int, ...], weights: tuple[str, ...], limit: int, numbers: list[int]
) -> None:
    assert shares(available, weights, limit) == numbers


def test_shares_never_ask_for_more_than_there_is() -> None:
    for first in range(1, 40):
        for second in range(1, 40):
            numbers = shares((first, second, 50), ("0.37", "1.4", ".2"))
            assert all(n <= there for n, there in zip(numbers, (first, second, 50), strict=True))


def test_weights_mix_the_sources(tmp_path: Path) -> None:
    found = sources(tmp_path, a=70, b=100)
    mix = f"0.7*{found['a']} 0.3*{found['b']}"
    result = prepare(tmp_path / "run", mix, data_split=0.8)
    assert taken(tmp_path / "run") == {"a": 70, "b": 30}
    assert (result.metrics["rows_train"], result.metrics["rows_eval"]) == (80, 20)
    assert result.metrics["rows_read"] == 170
    prepare(tmp_path / "few", mix, subset=50)
    assert taken(tmp_path / "few") == {"a": 35, "b": 15}
    prepare(tmp_path / "more", mix, subset=5000)
    assert taken(tmp_path / "more") == {"a": 70, "b": 30}


def test_the_seed_decides_which_rows_are_mixed(tmp_path: Path) -> None:
    mix = " ".join(f"1*{path}" for path in sources(tmp_path, a=5, b=100).values())
    made = {}
    for name, seed in (("a", 42), ("b", 42), ("c", 7)):
        prepare(tmp_path / name, mix, seed=seed)
        made[name] = sorted(map(str, rows(tmp_path / name)))
    assert made["a"] == made["b"] != made["c"]
    for split in ("train", "eval"):
        same = [(tmp_path / run / f"dataset/{split}.jsonl").read_bytes() for run in ("a", "b")]
        assert same[0] == same[1]


def test_a_row_of_several_sources_counts_for_the_first(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [chat(f"a{i}") for i in range(10)])
    second = write(tmp_path / "b.jsonl", [chat(f"{n}{i}") for n in "ab" for i in range(10)])
    result = prepare(tmp_path / "run", f"1*{first} 1*{second}")
    assert taken(tmp_path / "run") == {"a": 10, "b": 10}
    assert result.metrics["rows_duplicate"] == 10
    with pytest.raises(DataError, match=r"a\.jsonl: too few rows for its weight \(0 that no other"):
        prepare(tmp_path / "run", f"1*{second} 1*{first}")


def test_every_source_is_recorded(tmp_path: Path) -> None:
    found = sources(tmp_path, a=4, b=4)
    done = command(tmp_path / "run", f"3*{found['a']}\n1*{found['b']}")
    assert done.returncode == 0, done.stderr
    assert f"{found['b']}: 1 of 4 rows are taken" in done.stderr
    record = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert [record["inputs"][f"source_{i}"]["uri"] for i in (1, 2)] == list(
        map(str, found.values())
    )
    listed = record["details"]["sources"]
    assert [source["uri"] for source in listed] == list(map(str, found.values()))
    assert [source["weight"] for source in listed] == [3, 1]
    assert [len(source["files"]) for source in listed] == [1, 1]


def test_faults_name_the_file_and_the_line_in_it(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "chats.jsonl", [chat(f"{folder}1"), {"messages": turns("q")}])
    with pytest.raises(DataError) as told:
        prepare(tmp_path / "run", f"{tmp_path}/a {tmp_path}/b {tmp_path}/b/chats.jsonl")
    shown = str(told.value).splitlines()
    places = [line.partition(": no assistant")[0] for line in shown[:3]]
    assert places == [f"{tmp_path}/{folder}/chats.jsonl:2" for folder in "abb"]
    assert shown[3].startswith("3 of 6 rows are invalid")


def test_a_source_that_is_empty_or_not_there_is_named(tmp_path: Path) -> None:
    good, empty = write(tmp_path / "a.jsonl", [chat(1)]), write(tmp_path / "b.jsonl", [])
    with pytest.raises(DataError, match=r"b\.jsonl: the data set is empty"):
        prepare(tmp_path / "run", f"{good} {empty}")
    with pytest.raises(DataError, match=r"none\.jsonl: there is no"):
        check(tmp_path / "run", f"{good} {tmp_path}/none.jsonl")
    bad = write(tmp_path / "c.jsonl", [{}])
    with pytest.raises(DataError, match=r"c\.jsonl: no row is valid"):
        prepare(tmp_path / "run", f"{good} {bad}", on_invalid="skip")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (" \n", "--data-uri: there is no address"),
        ("/a.jsonl 2*/b.jsonl 1*s3://c/d", "/a.jsonl 2*/b.jsonl has no weight"),
        ("2*/a.jsonl /b.jsonl", "/b.jsonl has no weight"),
        ("2*/a.jsonl 0.0*/b.jsonl", "/b.jsonl has the weight 0"),
        ("/a.jsonl /b.jsonl\n/a.jsonl", "/a.jsonl is named 2 times"),
        ("1*/a.jsonl 2*gs://b/c", "gs://...: no source for the scheme 'gs'"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(tmp_path / "run", text)
    assert told in str(refused.value)
