"""The contract of a step's command: flags, exit codes, records, logs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = [sys.executable, "-m", "tests.toy.count"]


def count(workspace: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COUNT, f"--workspace={workspace}", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_step_leaves_its_output_record_log_results_and_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = count(run, "--number=3", f"--outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "count.json").read_text())
    assert record["schema"] == 1
    assert record["status"] == "done"
    assert record["parameters"]["number"] == 3
    assert record["metrics"] == {"number": 3}
    assert record["outputs"]["count"]["bytes"] == 1
    assert "count: done in" in (run / "logs" / "count.log").read_text()
    assert (tmp_path / "out" / "number").read_text() == "3"
    assert (run / "report.html").exists()


def test_the_log_names_the_parameters_that_were_chosen_and_the_record_all(tmp_path: Path) -> None:
    told = count(tmp_path, "--number=3", "--variables=A=1", "--place=a b", SFT_PASSWORD="hunter2")
    assert (
        "INFO count: parameters: number=3, password=**********, place='a b', the rest at their "
        "defaults\n"
    ) in told.stderr
    assert json.loads((tmp_path / "count.json").read_text())["parameters"]["variables"] == "A=1"


def test_a_done_step_is_not_done_again_and_another_parameter_does_it_afresh(tmp_path: Path) -> None:
    count(tmp_path, "--number=3")
    first = (tmp_path / "count.json").read_bytes()
    assert "already done" in count(tmp_path, "--number=3").stderr
    assert (tmp_path / "count.json").read_bytes() == first
    count(tmp_path, "--number=4")
    assert json.loads((tmp_path / "count.json").read_text())["metrics"]["number"] == 4


def test_a_step_whose_output_was_removed_is_done_again(tmp_path: Path) -> None:
    count(tmp_path, "--number=3")
    (tmp_path / "count.txt").unlink()
    assert "already done" not in count(tmp_path, "--number=3").stderr
    assert (tmp_path / "count.txt").exists()


def test_all_mistakes_on_a_command_line_are_told_at_once_with_exit_code_64(tmp_path: Path) -> None:
    told = count(tmp_path / "run", "--nummber", "3", "--number=-1", "--verbosity=LOUD", "stray=1")
    assert told.returncode == 64
    for problem in (
        "--nummber is not a flag; did you mean --number?",
        "--number: input should be greater than or equal to 0, got '-1'",
        "--verbosity: input should be 'DEBUG'",
    ):
        assert problem in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("DataError", 65),
        ("TransientError", 75),
        ("CredentialsError", 77),
        ("ConfigError", 78),
        ("full", 74),
        ("denied", 74),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(tmp_path: Path, error: str, code: int) -> None:
    failed = count(tmp_path, "--number=3", f"--fail={error}")
    assert failed.returncode == code
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "count.json").exists()


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    failed = count(tmp_path, "--number=3", "--fail=bug")
    assert failed.returncode == 1
    assert "RuntimeError: a bug" in failed.stderr
    assert "RuntimeError: a bug" in (tmp_path / "logs" / "count.log").read_text()


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    failed = count(tmp_path, "--number=3", "--fail=DataError", "--verbosity=DEBUG")
    assert failed.returncode == 65
    assert "Traceback" in failed.stderr


def test_a_secret_comes_by_the_environment_and_is_shown_nowhere(tmp_path: Path) -> None:
    done = count(tmp_path, "--number=3", SFT_PASSWORD="hunter2-hunter2")
    assert done.returncode == 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "the password is **********" in done.stderr
    assert all("hunter2" not in text for text in [done.stdout, done.stderr, *written])


def test_a_secret_as_a_flag_is_refused(tmp_path: Path) -> None:
    refused = count(tmp_path, "--number=3", "--password=hunter2-hunter2")
    assert refused.returncode == 64
    assert "SFT_PASSWORD" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_what_may_hold_a_secret_is_told_without_its_value_and_a_flag_wins(tmp_path: Path) -> None:
    count(tmp_path, "--number=3", "--variables=B=2", SFT_VARIABLES="C=3", SFT_SOURCE="/x.jsonl")
    assert (tmp_path / "given.txt").read_text() == "B=2 /x.jsonl"
    count(tmp_path, "--number=3", SFT_VARIABLES="")
    assert (tmp_path / "given.txt").read_text() == " "
    assert "SFT_VARIABLES" in count(tmp_path, "--help").stdout


@pytest.mark.parametrize("flag", ["workspace", "cache", "outputs"])
def test_a_file_in_a_folders_place_is_refused_before_the_work(tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").touch()
    refused = count(tmp_path / "run", "--number=3", f"--{flag}={tmp_path / 'file' / 'x'}")
    assert refused.returncode == 64
    assert f"--{flag}: {tmp_path}/file is a file, not a folder" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_ours_to_use_is_an_error_of_the_volume(tmp_path: Path) -> None:
    failed = count(tmp_path, "--number=3", "--fail=denied")
    assert failed.returncode == 74
    assert "count.txt: Permission denied: let user" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_environment_does_not_set_parameters(tmp_path: Path) -> None:
    count(tmp_path, "--number=3", NUMBER="7", number="7")
    assert json.loads((tmp_path / "count.json").read_text())["parameters"]["number"] == 3


def test_check_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert count(run, "--number=3", "--check").returncode == 0
    assert count(run, "--number=3", "--check", "--fail-check=ConfigError").returncode == 78
    assert not run.exists()


def test_a_broken_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "count.json").write_text('{"schema": 1, "step"')
    assert count(tmp_path, "--number=3").returncode == 0
    assert json.loads((tmp_path / "count.json").read_text())["status"] == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_step_keeps_its_state_and_leaves_no_record(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [*COUNT, f"--workspace={tmp_path}", "--number=3", f"--wait={pipe}"],
        stderr=subprocess.PIPE,
        text=True,
    ) as step:
        with pipe.open("w"):  # opened once the step reads: it is in the middle of its work
            step.send_signal(number)
            _, told = step.communicate()
    assert step.returncode == code
    assert "run the same command to go on" in told
    assert not (tmp_path / "count.json").exists()
    assert (tmp_path / "count.txt").exists()


def test_progress_reaches_the_file_that_argo_reads(tmp_path: Path) -> None:
    count(tmp_path, "--number=3", ARGO_PROGRESS_FILE=str(tmp_path / "progress"))
    assert (tmp_path / "progress").read_text() == "3/3\n"
