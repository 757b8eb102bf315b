"""Absolute paths and claims; and the step as a command: exit codes, checks, kills, full disks."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError, UsageError
from tests.dataset_runs import chat, check, command, jsonl, prepare, rows, write


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "b.jsonl", [chat(2)])
    write(folder / "a" / "c.jsonl", [chat(1)])
    write(folder / ".hidden.jsonl", [chat(3)])
    (folder / "README.md").write_text("about it")
    (folder / "dataset_info.json").write_text("{}")
    prepare(tmp_path / "run", folder, data_split=1.0)
    assert rows(tmp_path / "run") == [chat(1), chat(2)]


def test_a_folder_with_splits_is_read_for_its_training_split(tmp_path: Path) -> None:
    for number, name in enumerate(["train-0.jsonl", "test-0.jsonl", "validation/x.jsonl"]):
        write(tmp_path / "data" / name, [chat(number)])
    prepare(tmp_path / "run", tmp_path / "data")
    assert rows(tmp_path / "run") == [chat(0)]


def test_a_pattern_names_files(tmp_path: Path) -> None:
    for number, name in enumerate(["a/x.jsonl", "a/deep/x.jsonl", "b/y.jsonl"]):
        write(tmp_path / name, [chat(number)])
    prepare(tmp_path / "one", f"{tmp_path}/*/x.jsonl")
    prepare(tmp_path / "deep", f"{tmp_path}/**/x.jsonl", data_split=1.0)
    assert rows(tmp_path / "one") == [chat(0)]
    assert rows(tmp_path / "deep") == [chat(1), chat(0)]


def test_a_row_is_named_by_the_file_that_it_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", map(chat, range(3)))
    write(tmp_path / "data" / "b.jsonl", [chat(9), {}])
    with pytest.raises(DataError, match=r"data/b\.jsonl:2: missing"):
        prepare(tmp_path / "run", tmp_path / "data")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("{}/none.jsonl", "there is no"),
        ("{}/empty", "nothing in .* is a data file"),
        ("{}/*.jsonl", r"nothing in .* matches \*\.jsonl"),
    ],
)
def test_data_that_is_not_there_is_an_error(tmp_path: Path, uri: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    for run in (prepare, check):
        with pytest.raises(DataError, match=told):
            run(tmp_path / "run", uri.format(tmp_path))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("gs://bucket/key", "no source for the scheme 'gs'"),
        ("file:///x.jsonl", "no source for the scheme 'file'"),
        ("./chats.jsonl", "write hf://org/name"),
        ("https:///path", "there is no host"),
        ("s3://", "write s3://<bucket>/<key>"),
    ],
)
def test_an_address_that_no_source_knows_is_refused_by_name(
    tmp_path: Path, uri: str, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        check(tmp_path / "run", uri)


def test_a_file_that_lies_here_is_suggested_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "mine" / "chats.jsonl", [chat(1)])
    for folder, address in (
        (tmp_path, "data/mine/chats.jsonl"),
        (tmp_path / "data" / "mine", "chats.jsonl"),
    ):
        monkeypatch.chdir(folder)
        with pytest.raises(UsageError, match=f"write {tmp_path}/data/mine/chats.jsonl"):
            check(tmp_path / "run", address)


def test_a_claim_is_read_where_it_is_mounted(tmp_path: Path) -> None:
    write(tmp_path / "claims" / "data" / "sets" / "chats.jsonl", [chat(1)])
    bound = {"claims": tmp_path / "claims"}
    for name in ("chats.jsonl", "", "*.jsonl"):
        prepare(tmp_path / "run", f"pvc://data/sets/{name}", bound)
        assert rows(tmp_path / "run") == [chat(1)]


def test_a_name_on_a_claim_may_have_the_characters_of_patterns(tmp_path: Path) -> None:
    write(tmp_path / "claims" / "data" / "a[1].jsonl", [chat(1)])
    write(tmp_path / "claims" / "data" / "sub[x]" / "b.jsonl", [chat(2)])
    bound = {"claims": tmp_path / "claims"}
    for name, number in (("a[1].jsonl", 1), ("sub[x]", 2)):
        prepare(tmp_path / "run", f"pvc://data/{name}", bound)
        assert rows(tmp_path / "run") == [chat(number)]


@pytest.mark.parametrize("target", ["gone.jsonl", "link.jsonl"])
@pytest.mark.parametrize("uri", ["pvc://data/sets", "{folder}", "{folder}/*.jsonl"])
def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path, uri: str, target: str) -> None:
    folder = tmp_path / "claims" / "data" / "sets"
    write(folder / "chats.jsonl", [chat(1)])
    (folder / "link.jsonl").symlink_to(target)
    with pytest.raises(DataError, match=r"link\.jsonl: a link to what is not there"):
        check(tmp_path / "run", uri.format(folder=folder), {"claims": tmp_path / "claims"})


def test_a_link_to_a_folder_is_said_not_to_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "data" / "chats.jsonl", [chat(1)])
    write(tmp_path / "more" / "chats.jsonl", [chat(2)])
    (tmp_path / "data" / "more").symlink_to(tmp_path / "more")
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path / "run", tmp_path / "data")
    assert rows(tmp_path / "run") == [chat(1)]
    assert "data/more is a link to a folder: not read" in caplog.text


def test_a_name_that_is_not_utf_8_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Path(tmp_path, "data", os.fsdecode(b"caf\xe9.jsonl")).write_bytes(jsonl([chat(1)]))
    failed = command(tmp_path / "run", tmp_path / "data")
    assert failed.returncode == 65
    assert r"'caf\udce9.jsonl'" in failed.stderr and "is not UTF-8" in failed.stderr


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "data" / "chats.jsonl", [chat(1)])
    closed = tmp_path / "data" / "more"
    write(closed / "chats.jsonl", [chat(2)])
    (tmp_path / "data" / "lost+found").mkdir(mode=0)
    read = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name in ("more", "lost+found"):  # root may read all
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return read(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.scandir", scandir)
        with pytest.raises(PermissionError, match="data/more"):
            check(tmp_path / "run", tmp_path / "data")
    (closed / "chats.jsonl").unlink()
    closed.rmdir()
    check(tmp_path / "run", tmp_path / "data")


def test_the_runs_own_volume_is_a_claim(tmp_path: Path) -> None:
    write(tmp_path / "volume" / "chats.jsonl", [chat(1)])
    workspace = tmp_path / "volume" / "runs" / "one"
    bound = {"claims": tmp_path / "none", "volume_claim": "sft-runs", "volume_path": "runs/one"}
    prepare(workspace, "pvc://sft-runs/chats.jsonl", bound)
    assert rows(workspace) == [chat(1)]


def test_nothing_outside_of_a_claim_is_read(tmp_path: Path) -> None:
    outside = write(tmp_path / "secret.jsonl", [chat(1)])
    claim = tmp_path / "claims" / "data"
    claim.mkdir(parents=True)
    (claim / "link.jsonl").symlink_to(outside)
    bound = {"claims": tmp_path / "claims"}
    with pytest.raises(UsageError, match=r"'\.\.' may not lead out"):
        check(tmp_path / "run", "pvc://data/../../secret.jsonl", bound)
    for uri in ("pvc://data/link.jsonl", "pvc://data/*.jsonl", "pvc://data/"):
        with pytest.raises(DataError, match="a link leads out of the claim"):
            check(tmp_path / "run", uri, bound)


def test_a_claim_that_is_not_mounted_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "claims" / "other").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"'data' is not mounted .*other"):
        check(tmp_path / "run", "pvc://data/x.jsonl", {"claims": tmp_path / "claims"})


def test_the_command_leaves_splits_record_and_results(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(10)))
    run = tmp_path / "run"
    done = command(run, path, f"--outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "dataset.json").read_text())
    assert record["metrics"]["rows_train"] == 9
    assert record["outputs"]["train"]["path"] == "dataset/train.jsonl"
    assert record["inputs"]["source"]["uri"] == str(path)
    [file] = record["details"]["source"]["files"]
    assert (file["name"], file["bytes"]) == (str(path), path.stat().st_size)
    assert sorted(p.name for p in (run / "dataset").iterdir()) == ["eval.jsonl", "train.jsonl"]
    assert (tmp_path / "out" / "rows-train").read_text() == "9"
    assert (tmp_path / "out" / "rows-eval").read_text() == "1"


def test_the_same_data_is_not_read_again_but_changed_data_is(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(10)))
    assert command(tmp_path / "run", path).returncode == 0
    assert "already done" in command(tmp_path / "run", path).stderr
    write(path, map(chat, range(12)))
    assert "read 12" in command(tmp_path / "run", path).stderr


@pytest.mark.parametrize(
    ("uri", "flags", "code"),
    [
        ("{}/none.jsonl", [], 65),
        ("{}/bad.jsonl", [], 65),
        ("{}/good.jsonl", ["--data-split=90"], 64),
        ("{}/good.jsonl", ["--data-split=0"], 64),
        ("{}/good.jsonl", ["--subset=-1"], 64),
        ("gs://bucket/key", [], 64),
    ],
)
def test_what_is_wrong_decides_the_exit_code_of_run_and_check(
    tmp_path: Path, uri: str, flags: list[str], code: int
) -> None:
    write(tmp_path / "good.jsonl", [chat(1)])
    write(tmp_path / "bad.jsonl", [chat(1), {"messages": []}])
    for extra in ([], ["--check"]):
        failed = command(tmp_path / "run", uri.format(tmp_path), *flags, *extra)
        assert failed.returncode == code, failed.stderr
        assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run" / "dataset.json").exists()


def test_check_writes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(1)])
    assert command(tmp_path / "run", path, "--check").returncode == 0
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_exit_code_74_and_leaves_no_partial_file(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(20_000)))

    def at_most_a_megabyte() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    failed = subprocess.run(
        [
            sys.executable,
            "-m",
            "steps.dataset",
            f"--workspace={tmp_path / 'run'}",
            f"--data-uri={path}",
        ],
        preexec_fn=at_most_a_megabyte,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 74, failed.stderr
    assert "free or enlarge the volume" in failed.stderr
    assert not [p for p in (tmp_path / "run" / "dataset").glob("*") if p.suffix == ".jsonl"]


def test_a_killed_worker_is_no_bug(tmp_path: Path) -> None:
    rows_of_text = [chat("x" * 1000 + str(number)) for number in range(20_000)]
    path = write(tmp_path / "in.jsonl", rows_of_text)
    arguments = [f"--workspace={tmp_path / 'run'}", f"--data-uri={path}"]
    with subprocess.Popen(
        [sys.executable, "-m", "steps.dataset", *arguments], stderr=subprocess.PIPE, text=True
    ) as step:
        children = Path(f"/proc/{step.pid}/task/{step.pid}/children")
        while not (workers := children.read_text().split()):
            assert step.poll() is None
        os.kill(int(workers[0]), signal.SIGKILL)
        assert step.stderr
        told = step.stderr.read()
    assert step.returncode == 78, told
    assert "a process that checked rows was killed" in told
    assert "Traceback" not in told


def test_a_killed_run_ends_as_one_that_was_not_killed(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [*map(chat, range(60_000)), *map(chat, range(100))])
    assert command(tmp_path / "whole", path).returncode == 0
    run = tmp_path / "run"
    spool = run / "dataset"
    arguments = [f"--workspace={run}", f"--data-uri={path}"]
    with subprocess.Popen([sys.executable, "-m", "steps.dataset", *arguments]) as step:
        while not [*spool.glob(".work-*/spool/*")]:  # until it is in the middle of its work
            assert step.poll() is None
        step.kill()
    assert not (run / "dataset.json").exists()
    assert command(run, path).returncode == 0
    for name in ("train.jsonl", "eval.jsonl"):
        expected = (tmp_path / "whole" / "dataset" / name).read_bytes()
        assert (run / "dataset" / name).read_bytes() == expected
    assert sorted(p.name for p in spool.iterdir()) == ["eval.jsonl", "train.jsonl"]


def test_a_step_that_is_terminated_does_not_read_a_huge_file_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", map(chat, range(1000)))
    os.truncate(path, 1 << 40)  # all but the beginning is a hole
    arguments = [f"--workspace={tmp_path / 'run'}", f"--data-uri={path}"]
    with subprocess.Popen([sys.executable, "-m", "steps.dataset", *arguments]) as step:
        while not [*(tmp_path / "run").glob("dataset/.work-*/spool")]:
            assert step.poll() is None
        step.terminate()
        try:
            assert step.wait(timeout=60) == 143  # to read it takes ten minutes
        finally:
            step.kill()
