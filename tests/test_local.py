"""The local engine: order, resuming, stopping, and what it says of failures."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from steps.errors import UsageError
from tests.toy.pipeline import TOY
from workflows import StepFailedError, run
from workflows.console import Console

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


def test_a_secret_given_to_all_steps_wakes_none_that_is_left_out(tmp_path: Path) -> None:
    run({"number": 3}, tmp_path, pipeline=TOY)
    given = {"password": "hunter2-hunter2", "times": 3}
    assert set(run(given, tmp_path, pipeline=TOY, start="double")) == {"double"}
    assert set(run({"number": 4}, tmp_path, pipeline=TOY, start="double")) == {"count", "double"}


def test_relative_paths_hold_wherever_a_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "task", "task.yaml"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    places = ["task", "task.yaml", "other.yaml"]
    run({"number": 3, "place": "base", "places": places}, Path("run"), pipeline=TOY)
    kept = yaml.safe_load((tmp_path / "run" / "params.yaml").read_text())
    assert kept["phase_01_count_opt_place"] == str(tmp_path / "base")
    whole = ["task", str(tmp_path / "task.yaml"), "other.yaml"]
    assert kept["phase_01_count_opt_places"] == whole


def test_relative_addresses_are_those_from_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my data").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "my data" / name).touch()
    monkeypatch.chdir(tmp_path)
    here = f"{tmp_path}/my data"
    for given, whole in {
        "my data/a.jsonl": f"{here}/a.jsonl",
        "my data/*.jsonl": f"{here}/*.jsonl",
        "0.7*my data/a.jsonl 0.3*hf://org/b": f"0.7*{here}/a.jsonl 0.3*hf://org/b",
        "./my data\n/data/b.jsonl": f"{here}\n/data/b.jsonl",
        "org/name": "org/name",
        "none.jsonl": "none.jsonl",
    }.items():
        run({"number": 3, "source": given}, Path("run"), pipeline=TOY)
        kept = yaml.safe_load((tmp_path / "run" / "params.yaml").read_text())
        assert kept["phase_01_count_opt_source"] == whole


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
    assert "nummber is not a parameter; did you mean number?" in message
    assert "--number: input should be a valid integer" in message
    assert "--times: input should be a valid integer" in message
    assert not (tmp_path / "run").exists()


def test_a_failed_check_starts_nothing(tmp_path: Path) -> None:
    parameters = {"number": 3, "fail_check": "CredentialsError"}
    with pytest.raises(StepFailedError, match="the check of count failed") as failure:
        run(parameters, tmp_path, pipeline=TOY)
    assert failure.value.exit_code == 77
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_before_what_does_not_answer_and_gives_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {"number": 3, "fail_check": "TransientError", "times": 0}
    with pytest.raises(StepFailedError, match="the check of double, count failed") as failure:
        run(parameters, tmp_path / "run", pipeline=TOY, console=Console())
    assert failure.value.exit_code == 64
    told = capsys.readouterr().err
    assert told.index("--times 0") < told.index("the check says no")


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


SIGNED = "https://host/chats.jsonl?signature=s1gned-s1gned"
MAY_BE_SECRET = {"variables": "TOKEN=hunter2-hunter2", "source": SIGNED}


def test_what_may_hold_a_secret_reaches_the_step_by_no_argument_list(tmp_path: Path) -> None:
    run({"number": 3, **MAY_BE_SECRET}, tmp_path, pipeline=TOY)
    assert (tmp_path / "given.txt").read_text() == f"TOKEN=hunter2-hunter2 {SIGNED}"
    arguments = (tmp_path / "arguments.txt").read_text()
    assert "--number=3" in arguments
    assert "hunter2" not in arguments
    assert "s1gned" not in arguments


def test_a_variable_of_the_users_own_sets_no_parameter_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_VARIABLES", "B=2")
    run({"number": 3}, tmp_path, pipeline=TOY)
    assert (tmp_path / "given.txt").read_text() == "A=1 "


@pytest.mark.parametrize("name", MAY_BE_SECRET)
def test_a_value_that_may_hold_a_secret_is_asked_for_again_not_replaced_by_an_older_one(
    tmp_path: Path, name: str
) -> None:
    first = {"variables": "", "source": "/data/chats.jsonl"}
    run({"number": 3, **first}, tmp_path, pipeline=TOY)
    run({}, tmp_path, pipeline=TOY)  # what holds no secret is kept
    run({name: MAY_BE_SECRET[name]}, tmp_path, pipeline=TOY)
    assert MAY_BE_SECRET[name] not in (tmp_path / "params.yaml").read_text()
    with pytest.raises(UsageError, match=f"--{name}: its value is not kept.*give it again"):
        run({"times": 3}, tmp_path, pipeline=TOY)
    assert set(run({"times": 3}, tmp_path, pipeline=TOY, start="double")) == {"double"}
    run({name: first[name]}, tmp_path, pipeline=TOY)
    run({}, tmp_path, pipeline=TOY)


def test_one_parameter_by_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="phase_01_count_man_number and count-number are one"):
        run({"phase_01_count_man_number": 3, "count-number": 4}, tmp_path, pipeline=TOY)


def test_a_process_that_a_step_leaves_behind_neither_holds_up_the_run_nor_survives_it(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(tmp_path / "run"), "number=3", f"leave={pipe}"]
    ) as engine:
        with pipe.open() as held:
            assert held.read() == ""  # the end: nobody holds the pipe any more
        assert engine.wait() == 0


def test_what_is_no_folder_is_a_mistake_of_use(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=r"the run's folder: .*file is a file, not a folder"):
        run({"number": 3}, file / "run", pipeline=TOY)
    with pytest.raises(UsageError, match=r"--cache: .*file is a file, not a folder"):
        run({"number": 3}, tmp_path / "run", pipeline=TOY, cache=file)


def test_a_broken_file_of_parameters_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("- 3\n")
    with pytest.raises(UsageError, match=r"params\.yaml: not a mapping"):
        run({"number": 3}, tmp_path, pipeline=TOY)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_a_run_stopped_in_its_checks_leaves_no_process(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    workspace = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(workspace), "number=3", f"wait_check={pipe}"],
        stderr=subprocess.DEVNULL,
    ) as engine:
        with pipe.open("w") as held:  # opened once the check reads
            engine.send_signal(number)
            engine.wait()
            with pytest.raises(BrokenPipeError):  # nobody reads any more
                os.write(held.fileno(), b"go on")
    assert engine.returncode == code
    assert not (workspace / "count.txt").exists()


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
