"""hf:// against a hub on loopback.

The hub's client reads its address when it is imported, and `datasets` is slow to import: the cases
that need no process of their own share one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.dataset_runs import chat, command, rows, write
from tests.servers.hub import SIGNATURE, STRANGER, Hub

ROWS = [chat(number) for number in range(6)]
TOKEN = "hf_accepted"


def parquet(path: Path, table: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(table)), path)


def card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(f"---\n{text}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    org = root / "datasets" / "org"
    write(org / "plain" / "chats.jsonl", ROWS)
    write(org / "plain@v1" / "chats.jsonl", ROWS[:2])
    parquet(org / "splits" / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    parquet(org / "splits" / "data" / "train-00001-of-00002.parquet", ROWS[2:4])
    parquet(org / "splits" / "data" / "test-00000-of-00001.parquet", ROWS[4:])
    write(org / "configs" / "en" / "a.jsonl", ROWS[:3])
    write(org / "configs" / "de" / "a.jsonl", ROWS[3:])
    card(
        org / "configs",
        "configs:\n- config_name: en\n  data_files: en/*.jsonl\n"
        "- config_name: de\n  data_files: de/*.jsonl\n",
    )
    for name, splits in {
        "sft": {"train_sft": 0, "train_gen": 1, "test_sft": 2},
        "tests-only": {"test": 0, "validation": 1},
        "two": {"train_a": 0, "train_b": 1},
        "one": {"train_x": 3, "test": 1},
        "measured": {"train_test": 0, "other": 1},
    }.items():
        lines = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
        for split, number in splits.items():
            write(org / name / f"{split}.jsonl", [ROWS[number]])
        card(org / name, f"configs:\n- config_name: default\n  data_files:\n{lines}")
    write(org / "folders" / "set[1]" / "chats.jsonl", ROWS[:1])
    write(org / "gated" / "chats.jsonl", ROWS)
    write(org / "lying" / "lie.jsonl", ROWS)
    parquet(org / "lying-lfs" / "lie.parquet", ROWS)
    with Hub(root, token=TOKEN, gated=frozenset({"org/gated"})) as hub:
        hub.corrupt("lie.jsonl")
        hub.corrupt("lie.parquet")
        yield hub


def run(
    hub: Hub, workspace: Path, uri: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return command(workspace, uri, "--data-split=1.0", *flags, **hub.environment, **environment)


def source(workspace: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workspace / "dataset.json").read_text())
    found: dict[str, Any] = record["details"]["source"]
    return found


ADDRESSES = {
    "hf://org/plain": ROWS,
    "org/plain": ROWS,
    "hf://datasets/org/plain": ROWS,
    "hf://org/plain@v1": ROWS[:2],
    "hf://org/plain@v1/": ROWS[:2],
    "hf://datasets/org/plain@%761/chats.jsonl": ROWS[:2],
    "hf://datasets/org/folders/set[1]": ROWS[:1],
    "hf://datasets/org/plain@v1/chats.jsonl": ROWS[:2],
    "hf://org/splits": ROWS[:4],
    "hf://org/splits#test": ROWS[4:],
    "hf://datasets/org/splits/data/train-*.parquet": ROWS[:4],
    "hf://datasets/org/splits/data": ROWS[:4],
    "hf://org/configs:de": ROWS[3:],
    "hf://org/sft": ROWS[:1],
    "hf://org/one": ROWS[3:4],
}
REFUSALS = {
    "hf://org/none": (77, "no such data set on the hub, or it is private or gated"),
    "hf://org/plain@v9": (65, "there is no revision 'v9'"),
    "hf://org/plain#test": (65, "there is no split 'test', but train"),
    "hf://org/configs": (65, "hf://org/configs:<config>"),
    "hf://org/configs:fr": (65, "BuilderConfig 'fr' not found"),
    "hf://org/tests-only": (65, "no split is named train; it has test, validation"),
    "hf://org/measured": (65, "no split is named train; it has other, train_test"),
    "hf://org/two": (65, "hf://org/two#<split>"),
    "hf://datasets/org/plain/none.jsonl": (65, "there is no none.jsonl"),
    "hf://org/gated": (77, "/datasets/org/gated with an account"),
}
CORRUPT = ("hf://org/lying", "hf://org/lying-lfs")
ALL = """
import json, sys
from pathlib import Path
from tests.dataset_runs import attempt, check, prepare
told = {}
for number, uri in enumerate(sys.argv[2:]):
    folder = Path(sys.argv[1], str(number))
    told[uri] = [str(folder), attempt(check, folder, uri), attempt(prepare, folder, uri, data_split=1.0)]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Of each address: the workspace, and how its check and its run ended."""
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, "-c", ALL, str(folder), *ADDRESSES, *REFUSALS, *CORRUPT],
        env={**os.environ, "PYTHONPATH": str(ROOT), **hub.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_names_rows(told: dict[str, list[Any]], uri: str) -> None:
    workspace, check, run = told[uri]
    assert (check, run) == ([0, ""], [0, ""])
    assert rows(Path(workspace)) == ADDRESSES[uri]


@pytest.mark.parametrize("uri", REFUSALS)
def test_what_cannot_be_had_is_told_by_run_and_check(told: dict[str, list[Any]], uri: str) -> None:
    code, message = REFUSALS[uri]
    for found, said in told[uri][1:]:
        assert found == code
        assert message in said
        assert code != 77 or "the secret hf-token (key HF_TOKEN)" in said


@pytest.mark.parametrize("uri", CORRUPT)
def test_bytes_that_do_not_fit_the_hubs_checksum_are_refused(
    told: dict[str, list[Any]], uri: str
) -> None:
    workspace, _, (code, said) = told[uri]
    assert code == 65
    assert "corrupt: its checksum is" in said
    assert not list(Path(workspace, "dataset").glob("*.jsonl"))


def test_the_commit_is_pinned_and_recorded(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.requests)
    done = run(hub, tmp_path, "hf://org/splits")
    assert done.returncode == 0, done.stderr
    commit = hub.commit("org/splits", kind="datasets").sha
    found = source(tmp_path)
    assert found["revision"] == commit
    assert [file["name"] for file in found["files"]] == [
        f"hf://org/splits/data/train-0000{number}-of-00002.parquet" for number in (0, 1)
    ]
    resolved = [request for request in hub.requests[before:] if "/resolve/" in request]
    assert resolved
    assert all(f"/resolve/{commit}/" in request for request in resolved)


def test_a_second_run_takes_the_files_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    cache = f"--cache={tmp_path / 'cache'}"
    assert run(hub, tmp_path / "a", "hf://org/plain", cache).returncode == 0
    before = len(hub.requests)
    assert run(hub, tmp_path / "b", "hf://org/plain", cache).returncode == 0
    assert not [r for r in hub.requests[before:] if r.startswith("GET") and "chats.jsonl" in r]
    before = len(hub.requests)
    assert "already done" in run(hub, tmp_path / "b", "hf://org/plain", cache).stderr
    assert len(hub.requests) == before


def test_a_missing_data_set_is_a_data_error_for_who_has_a_token(hub: Hub, tmp_path: Path) -> None:
    failed = run(hub, tmp_path, "hf://org/none", HF_TOKEN=TOKEN)
    assert failed.returncode == 65
    assert "check the name" in failed.stderr


def test_a_gated_data_set_wants_an_account_that_accepted_its_licence(
    hub: Hub, tmp_path: Path
) -> None:
    stranger = run(hub, tmp_path, "hf://org/gated", "--check", HF_TOKEN=STRANGER)
    assert stranger.returncode == 77
    assert "gated: accept its licence" in stranger.stderr
    wrong = run(hub, tmp_path, "hf://org/gated", HF_TOKEN="hf_wrong")
    assert wrong.returncode == 77
    done = run(hub, tmp_path, "hf://org/gated", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == ROWS
    written = [path.read_text() for path in tmp_path.glob("*.*") if path.is_file()]
    assert not [text for text in [done.stderr, *written] if TOKEN in text]


def test_a_token_given_as_a_parameter_works_with_a_warning(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "hf://org/gated", SFT_HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "belongs in the secret 'hf-token'" in done.stderr


def test_a_hub_that_fails_for_now_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.fail(429, 2)
    done = run(hub, tmp_path, "hf://org/plain")
    assert done.returncode == 0, done.stderr


def test_the_signature_of_the_hubs_links_is_shown_nowhere(hub: Hub, tmp_path: Path) -> None:
    hub.cdn_failures[:] = [500, 404]
    shown = [run(hub, tmp_path, "hf://org/splits", "--verbosity=DEBUG") for _ in range(3)]
    assert [done.returncode for done in shown] == [75, 65, 0]
    assert "404 Not Found" in shown[1].stderr
    logged = (tmp_path / "logs" / "dataset.log").read_text()
    assert not [text for text in [*(done.stderr for done in shown), logged] if SIGNATURE in text]


def test_a_file_that_is_cut_short_is_transient_and_shows_no_signature(
    hub: Hub, tmp_path: Path
) -> None:
    hub.cut = 100
    try:
        failed = run(hub, tmp_path, "hf://org/splits")
    finally:
        hub.cut = None
    assert failed.returncode == 75
    assert "fewer or more bytes than it lists" in failed.stderr
    assert SIGNATURE not in failed.stderr


def test_a_token_that_is_none_is_refused_and_not_shown(hub: Hub, tmp_path: Path) -> None:
    failed = run(hub, tmp_path, "hf://org/plain", HF_TOKEN="hf_s3\ncret")
    assert failed.returncode == 77
    assert "the secret hf-token (key HF_TOKEN)" in failed.stderr
    assert "cret" not in failed.stderr.replace("secret", "")


def test_what_is_repeated_by_the_hubs_client_shows_no_signature(hub: Hub, tmp_path: Path) -> None:
    hub.cdn_failures[:] = [429]
    done = run(hub, tmp_path, "hf://org/splits")
    assert done.returncode == 0, done.stderr
    assert not hub.cdn_failures
    assert SIGNATURE not in done.stderr


def test_what_lies_here_by_the_same_name_is_suggested_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "plain").mkdir(parents=True)
    before = len(hub.requests)
    failed = run(hub, tmp_path / "run", "org/plain")
    assert failed.returncode == 64
    assert f"write {tmp_path}/org/plain for what lies here, or hf://org/plain" in failed.stderr
    assert len(hub.requests) == before
    assert run(hub, tmp_path / "run", "hf://org/plain").returncode == 0


def test_check_writes_nothing(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "run", "hf://org/splits", "--check")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_hubs_own_test_split_can_be_the_eval_set(hub: Hub, tmp_path: Path) -> None:
    done = command(
        tmp_path, "hf://org/splits", "--eval-uri=hf://org/splits#test", **hub.environment
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == ROWS
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert (record["metrics"]["rows_train"], record["metrics"]["rows_eval"]) == (4, 2)
    commit = hub.commit("org/splits", kind="datasets").sha
    assert record["details"]["eval_source"]["revision"] == commit
