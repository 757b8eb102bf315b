"""The local engine: order, resuming, stopping, and what it says of failures."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from steps.errors import UsageError
from tests.toy.pipeline import TOY
from workflows import StepFailedError, run

# The engine as its own process, so that it can be stopped and killed.
ENGINE = """
import sys
from pathlib import Path
from tests.toy.pipeline import TOY
from workflows import run
run(dict(pair.split("=", 1) for pair in sys.argv[2:]), Path(sys.argv[1]), pipeline=TOY)
"""


def metric(workspace: Path, step: str) -> float:
    return float(json.loads((workspace / f"{step}.json").read_text())["metrics"]["number"])


def test_a_pipeline_runs_in_order_and_returns_its_records(tmp_path: Path) -> None:
    records = run({"number": 3, "phase_02_double_man_times": 4}, tmp_path / "run", pipeline=TOY)
    assert list(records) == ["count", "double"]
    assert records["double"].metrics == {"number": 12}


def test_what_a_step_prints_is_in_its_log(tmp_path: Path) -> None:
    run({"number": 3}, tmp_path, pipeline=TOY)
    assert "printed by a library" in (tmp_path / "logs" / "count.log").read_text()


def test_running_again_does_only_what_has_changed(tmp_path: Path) -> None:
    run({"number": 3}, tmp_path, pipeline=TOY)
    counted = (tmp_path / "count.json").read_bytes()
    records = run({"times": 5}, tmp_path, pipeline=TOY)
    assert records["double"].metrics == {"number": 15}
    assert (tmp_path / "count.json").read_bytes() == counted


def test_a_step_that_changed_takes_everything_after_it_along(tmp_path: Path) -> None:
    run({"number": 3}, tmp_path, pipeline=TOY)
    run({"number": 4}, tmp_path, pipeline=TOY)
    assert metric(tmp_path, "double") == 8


def test_starting_at_a_later_step_uses_what_is_there(tmp_path: Path) -> None:
    run({"number": 3}, tmp_path, pipeline=TOY)
    (tmp_path / "params.yaml").unlink()
    assert set(run({"times": 3}, tmp_path, pipeline=TOY, start="double")) == {"double"}
    assert metric(tmp_path, "double") == 9


def test_starting_at_a_later_step_without_what_it_needs_says_so(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError) as failure:
        run({}, tmp_path, pipeline=TOY, start="double")
    assert failure.value.exit_code == 65
    assert "run the count step first" in (tmp_path / "logs" / "double.log").read_text()


def test_all_wrong_parameters_are_refused_in_one_message_before_anything_starts(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError) as refused:
        run({"nummber": 3, "number": "many", "times": "x"}, tmp_path / "run", pipeline=TOY)
    message = str(refused.value)
    assert "nummber is not a parameter; did you mean --number?" in message
    assert "--number: input should be a valid integer" in message
    assert "--times: input should be a valid integer" in message
    assert not (tmp_path / "run").exists()


def test_a_failed_check_starts_nothing(tmp_path: Path) -> None:
    parameters = {"number": 3, "fail_check": "CredentialsError"}
    with pytest.raises(StepFailedError, match="the check of count failed") as failure:
        run(parameters, tmp_path, pipeline=TOY)
    assert failure.value.exit_code == 77
    assert not (tmp_path / "count.txt").exists()


def test_check_only_writes_nothing(tmp_path: Path) -> None:
    assert run({"number": 3}, tmp_path / "run", pipeline=TOY, check_only=True) == {}
    assert not (tmp_path / "run").exists()


def test_a_failed_step_gives_its_exit_code_and_the_place_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match=r"count failed with exit code 75.*count\.log") as no:
        run({"number": 3, "fail": "TransientError"}, tmp_path, pipeline=TOY)
    assert no.value.exit_code == 75
    assert not (tmp_path / "double.json").exists()
    assert run({"fail": ""}, tmp_path, pipeline=TOY)["double"].metrics == {"number": 6}


def test_a_secret_travels_by_the_environment_and_is_not_kept(tmp_path: Path) -> None:
    run({"number": 3, "password": "hunter2-hunter2"}, tmp_path, pipeline=TOY)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("the password is **********" in text for text in written)
    assert all("hunter2" not in text for text in written)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_a_stopped_run_stops_its_steps_and_can_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    workspace = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(workspace), "number=3", f"wait={pipe}"],
        stderr=subprocess.DEVNULL,
    ) as engine:
        with pipe.open("w"):  # opened once the step reads
            engine.send_signal(number)
            engine.wait()
    assert engine.returncode == code
    assert (
        "terminated; run the same command to go on"
        in (workspace / "logs" / "count.log").read_text()
    )
    assert run({"wait": ""}, workspace, pipeline=TOY)["double"].metrics == {"number": 6}


def test_a_killed_engine_takes_its_steps_along_and_the_run_goes_on(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    workspace = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(workspace), "number=3", f"wait={pipe}"]
    ) as engine:
        with pipe.open("w"):
            engine.kill()
            engine.wait()
            # Waits for the lock, which the step holds until it has ended too.
            records = run({"wait": ""}, workspace, pipeline=TOY)
    assert records["double"].metrics == {"number": 6}


def test_two_engines_on_one_run_wait_for_one_another(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    workspace = tmp_path / "run"
    first = threading.Thread(
        target=run, args=({"number": 3, "wait": str(pipe)}, workspace), kwargs={"pipeline": TOY}
    )
    first.start()
    with pipe.open("w") as go_on:
        second = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(workspace), "number=4", "wait="]
        )
        go_on.write("now")
    first.join()
    assert second.wait() == 0
    assert metric(workspace, "double") == 8
