"""The `sft` command: the whole pipeline with its four real steps."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steps.dataset.params import DatasetParams
from steps.errors import UsageError
from steps.evaluate.params import EvaluateParams
from steps.record import Asset, Record
from steps.workspace import Workspace
from tests.test_training_cpu import write_chats
from tests.tiny import make_model
from workflows import SFT as PIPELINE
from workflows import values

SFT = [sys.executable, "-m", "workflows.cli"]
TASK = {
    "task": "colours",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def sft(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SFT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def make_task(folder: Path, name: str) -> Path:
    data = folder / f"{name}.jsonl"
    rows = [{"question": f"{n}?", "choices": ["one", "two"], "answer": n % 2} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    task = TASK | {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    path.write_text(json.dumps(task))
    return path


@pytest.fixture
def arguments(tmp_path: Path) -> list[object]:
    """A small run with all four steps."""
    return [
        *("--data-uri", write_chats(tmp_path / "chats.jsonl")),
        *("--model", make_model(tmp_path / "base", "llama")),
        *("--tasks", json.dumps([str(make_task(tmp_path, "colours"))])),
        *("--train-batch", 8, "--learning-rate", 0.01, "--heldout-limit", 2),
        *("--cache", tmp_path / "cache"),
    ]


def record(run: Path, step: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / f"{step}.json").read_text())
    return found


def test_one_command_makes_an_evaluated_model_and_a_resumed_run_does_what_is_missing(
    tmp_path: Path, arguments: list[object]
) -> None:
    run = tmp_path / "my runs" / "first"
    done = sft("run", *arguments, "--runs", run.parent, "--run-name", run.name)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout
    assert "colours.acc" in done.stdout
    statuses = {step: record(run, step)["status"] for step in ("dataset", "train", "evaluate")}
    assert set(statuses.values()) == {"done"}
    assert record(run, "register")["status"] == "skipped"
    assert json.loads((run / "registration.json").read_text())["status"] == "skipped"
    assert (run / "report.html").read_text().count("<section") > 3

    before = {step: (run / f"{step}.json").read_bytes() for step in ("dataset", "train")}
    evaluated = record(run, "evaluate")["finished"]
    again = sft("run", "--resume", run, "--cache", tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert record(run, "evaluate")["finished"] == evaluated

    other = json.dumps([str(make_task(tmp_path, "shapes"))])
    changed = sft("run", "--resume", run, "--tasks", other, "--cache", tmp_path / "cache")
    assert changed.returncode == 0, changed.stderr
    assert {step: (run / f"{step}.json").read_bytes() for step in before} == before
    metrics = record(run, "evaluate")["metrics"]
    assert isinstance(metrics, dict)
    assert "shapes.acc" in metrics
    assert "colours.acc" not in metrics


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, arguments: list[object]
) -> None:
    run = tmp_path / "runs" / "killed"
    words = [*arguments, "--save-samples", 8, "--runs", run.parent, "--run-name", run.name]
    with subprocess.Popen(
        [*SFT, "run", *map(str, words)], stderr=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stderr is not None
        for line in engine.stderr:
            if "checkpoint after step 2" in line:
                engine.send_signal(signal.SIGKILL)
                break
        engine.stderr.read()
    rows = (run / "dataset" / "train.jsonl").read_bytes()
    resumed = sft("run", "--resume", run, "--cache", tmp_path / "cache")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step" in resumed.stderr
    assert (run / "dataset" / "train.jsonl").read_bytes() == rows


def test_parameters_from_a_file_go_by_any_name_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "phase_01_dataset_man_data_uri: /nowhere/chats.jsonl\n"
        "train_epochs: 2\n"
        "batch: 4\n"
        "phase_02_train_opt_cpu: 8\n"
        "version: one\n"
        "epoks: 3\n"
    )
    words = ["-p", "phase_02_train_man_tokens=0", "-p", "epochs=7", "-p", "tokns=3", "-p", "seed"]
    told = sft("run", "--params", path, *words, "--train-epochs", "0", "--check").stderr
    assert "--epochs: input should be greater than 0, got '0'" in told
    assert "--version: " in told
    assert "--tokens: input should be greater than 0, got '0'" in told
    assert "-p: tokns is not a parameter; did you mean tokens?" in told
    assert "-p: 'seed' is not NAME=VALUE" in told
    assert "epoks is not a parameter; did you mean epochs?" in told
    assert "--batch" not in told
    assert "data" not in told


def test_texts_of_a_file_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("format_version: 1.10\nauthor: 007\ndescription: 2026-11-24\nepochs: 3\n")
    found, _ = values.assign(PIPELINE, values.from_file(path))
    models, problems = values.build(PIPELINE, found, ["register", "train"])
    assert not problems
    kept = models["register"].model_dump(include={"format_version", "author", "description"})
    assert kept == {"format_version": "1.10", "author": "007", "description": "2026-11-24"}
    assert models["train"].model_dump()["epochs"] == 3


def test_an_empty_file_of_parameters_gives_none(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# none yet\n")
    told = sft("run", "--params", tmp_path / "params.yaml", "--check")
    assert "--data-uri is required" in told.stderr


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ("train", "has left no rows"),
        ("evaluate", "has left no model"),
        ("register", "has left no model"),
    ],
)
def test_a_check_sees_that_a_step_left_out_has_left_nothing(
    tmp_path: Path, start: str, told: str
) -> None:
    refused = sft("run", "--from", start, "--check", "--runs", tmp_path / "runs")
    assert refused.returncode == 64
    assert told in refused.stderr


def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 2\nseed: [1, 2\n")
    with pytest.raises(UsageError, match=r"mine\.yaml:3: [^<>]+$"):
        values.from_file(path)


def test_a_file_that_names_one_parameter_twice_is_refused_by_both_names(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("data_uri: /x.jsonl\nphase_02_train_man_epochs: 2\ntrain-epochs: 3\n")
    told = sft("run", "--params", path, "--epochs", 4, "--check")
    assert told.returncode == 64
    assert "phase_02_train_man_epochs and train-epochs are one parameter" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs", "{}/file"], "{}/file is a file, not a folder"),
        (["--cache", "{}/file"], "--cache: {}/file is a file, not a folder"),
        (["--verbosity", "LOUD"], "--verbosity: input should be 'DEBUG'"),
        (["--params", "{}/none.yaml"], "{}/none.yaml: No such file"),
        (["--resume", "{}"], "{} is not the folder of a run"),
        (["--model", "m" * 300], "mmm...: File name too long"),
        (["--model", "/m" * 3000], "/m...: File name too long"),
        (["--run-name", "m" * 300], "mmm' is not the name of a folder"),
    ],
)
def test_what_the_command_itself_cannot_use_is_a_mistake_of_use(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "file").touch()
    words = [word.format(tmp_path) for word in arguments]
    refused = sft("run", "--data-uri", "/x.jsonl", *words, cwd=tmp_path)
    assert refused.returncode == 64, refused.stderr
    assert told.format(tmp_path) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_mistakes_of_a_value_of_several_together_and_of_the_place_are_told_at_once(
    tmp_path: Path,
) -> None:
    refused = sft(
        *("run", "--epochs", "three", "--gpu", 2, "--evaluate-cpu", 8, "--subset", -1),
        *("--lr-warmup", 3, "--lr-scheduler", "constant", "--tasks", "[]", "--data-split", "1.0"),
        *("--runs", tmp_path / "runs"),
    )
    assert refused.returncode == 64
    for told in (
        "--data-uri is required",
        "--subset: input should be greater than or equal to 0",
        "--epochs: input should be a valid integer",
        "--gpu needs a cluster: leave it at its default here",
        "--evaluate-cpu needs a cluster",
        "--lr-warmup has no effect with --lr-scheduler constant",
    ):
        assert refused.stderr.count(told) == 1, told
    assert "left out" not in refused.stderr
    given = sft("run", "--data-uri", "/x.jsonl", "--subset", -1, "--tasks", "[]", "--data-split", 1)
    assert "--subset: " in given.stderr
    assert "nothing would be evaluated" in given.stderr


def test_a_name_that_two_steps_share_is_asked_back(tmp_path: Path) -> None:
    told = sft("run", "--data-uri", "/x.jsonl", "--seed", "3")
    assert told.returncode == 64
    assert "--dataset-seed" in told.stderr
    assert "--train-seed" in told.stderr


def test_nothing_to_evaluate_is_refused_before_anything_starts(tmp_path: Path) -> None:
    told = sft(
        *("run", "--data-uri", "/x.jsonl", "--data-split", "1.0", "--tasks", "[]"),
        *("--runs", tmp_path / "runs"),
    )
    assert told.returncode == 64
    assert "nothing would be evaluated" in told.stderr
    assert not (tmp_path / "runs").exists()


def test_a_limit_of_no_examples_is_no_evaluation() -> None:
    dataset = DatasetParams(data_uri="/x.jsonl", data_split=1.0)
    refused = PIPELINE.refusals({"dataset": dataset, "evaluate": EvaluateParams(limit=0)})
    assert len(refused) == 1
    assert "--limit is 0" in refused[0]


def test_a_data_set_of_one_row_and_nothing_else_to_score_ends_before_training(
    tmp_path: Path,
) -> None:
    arguments = [
        *("--data-uri", write_chats(tmp_path / "chats.jsonl", 1)),
        *("--model", make_model(tmp_path / "base"), "--tasks", "[]"),
    ]
    run = tmp_path / "runs" / "one"
    named = ["--runs", run.parent, "--run-name", run.name]
    for where in (named, ["--resume", run]):  # the second time the dataset step is done already
        told = sft("run", *arguments, *where)
        assert told.returncode == 64, told.stderr
        assert "no rows are held out" in told.stderr
        assert (tmp_path / "runs" / "one" / "dataset.json").exists()
        assert not (tmp_path / "runs" / "one" / "logs" / "train.log").exists()


def test_the_verbosity_of_the_run_is_that_of_every_step_unless_it_has_its_own(
    tmp_path: Path,
) -> None:
    run = ("run", "--check", "--from", "evaluate", "--evaluate-model", tmp_path / "none")
    told = sft(*run, "--tasks", "[]", "--verbosity", "DEBUG").stderr
    assert "Traceback" in told
    told = sft(*run, "--tasks", "[]", "--verbosity", "DEBUG", "--evaluate-verbosity", "INFO").stderr
    assert "Traceback" not in told


def test_an_eval_set_is_something_to_evaluate_without_a_split() -> None:
    values = {"data_uri": "/x.jsonl", "data_split": 1.0}
    evaluate = EvaluateParams(tasks=[])
    for held_out, refused in (("", True), ("/y.jsonl", False)):
        dataset = DatasetParams.model_validate(values | {"eval_uri": held_out})
        assert bool(PIPELINE.refusals({"dataset": dataset, "evaluate": evaluate})) is refused


def test_the_checks_of_all_steps_are_told_before_the_first_step_starts(tmp_path: Path) -> None:
    told = sft(
        *("run", "--data-uri", tmp_path / "none.jsonl", "--model", tmp_path / "none"),
        *("--tasks", json.dumps([str(tmp_path / "none.yaml")]), "--address", "http://127.0.0.1:1"),
        *("--runs", tmp_path / "runs", "--run-name", "first"),
    )
    assert told.returncode == 65
    for step in ("dataset", "train", "evaluate", "register"):
        assert f"\n{step}" in told.stderr
    assert f"{tmp_path}/none.jsonl: there is no such file or folder; check the path" in told.stderr
    assert f"{tmp_path}/none.yaml: there is no such file; --tasks names it" in told.stderr
    assert "nothing was started" in told.stderr
    assert "--resume" not in told.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_stopped_in_its_checks_is_not_said_to_go_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/chats.jsonl"
        words = ["run", "--data-uri", address, "--runs", tmp_path / "runs"]
        with subprocess.Popen(
            [*SFT, *map(str, words)], stderr=subprocess.PIPE, text=True
        ) as engine:
            connection, _ = silent.accept()  # the check asks for the data, and nobody answers
            with connection:
                engine.send_signal(signal.SIGTERM)
                _, told = engine.communicate()
    assert engine.returncode == 143
    assert "stopped; nothing was started" in told
    assert "--resume" not in told


def test_the_command_that_goes_on_names_the_step_that_the_run_began_at(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "scores"
    gone = {"model": Asset(path="model"), "base_model": Asset(path="base")}
    now = datetime.now(UTC)
    Record(
        step="train",
        status="done",
        fingerprint="",
        started=now,
        finished=now,
        seconds=0,
        parameters={},
        inputs=gone,
        outputs=gone,
        metrics={},
        versions={},
    ).write(Workspace(run))
    words = ["--runs", run.parent, "--run-name", run.name, "--tasks", "[]"]
    failed = sft("run", "--from", "evaluate", *words)
    assert failed.returncode == 65, failed.stderr
    told = next(line for line in failed.stderr.splitlines() if "to go on: " in line)
    again = sft(*shlex.split(told.partition("to go on: ")[2])[1:])
    assert again.returncode == 65, again.stderr
    assert "the model is not there any more" in again.stderr


def test_a_run_of_that_name_is_not_written_over(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    (run / "params.yaml").write_text("phase_02_train_man_epochs: 2\n")
    refused = sft("run", "--data-uri", "/data", "--runs", tmp_path, "--run-name", "first")
    assert refused.returncode == 64
    assert f"go on with it by --resume {run}" in refused.stderr


def test_a_flag_without_its_value_hides_no_other_mistake(tmp_path: Path) -> None:
    refused = sft("run", "--runs", tmp_path, "--epoch", "3", "--subset", "x", "--batch")
    assert refused.returncode == 64
    for told in (
        "--batch/--evaluate-batch: expected one argument",
        "--epoch is not a flag; did you mean --epochs?",
        "--subset: input should be a valid integer",
        "--data-uri is required",
    ):
        assert told in refused.stderr


def test_a_relative_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    refused = sft("run", "--check", "--data-uri", "chats.jsonl", "--runs", tmp_path, cwd=tmp_path)
    assert refused.returncode == 64
    assert f"chats.jsonl: there is no such file ({tmp_path / 'chats.jsonl'})" in refused.stderr


def test_later_steps_alone_take_a_given_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tuned")
    done = sft(
        *("run", "--from", "evaluate", "--evaluate-model", model),
        *("--tasks", json.dumps([str(make_task(tmp_path, "colours"))])),
        *("--runs", tmp_path / "runs", "--run-name", "scores", "--cache", tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "scores"
    assert sorted(path.stem for path in run.glob("*.json")) == [
        "evaluate",
        "register",
        "registration",
    ]


def test_a_folder_named_steps_where_the_user_stands_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "__init__.py").write_text("raise RuntimeError")
    command = [sys.executable, "-P", "-m", "workflows.cli"]
    told = subprocess.run(
        [*command, "run", "--data-uri", tmp_path / "none.jsonl", "--check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError" not in told.stderr
    assert "none.jsonl" in told.stderr


def test_help_lists_every_parameter(tmp_path: Path) -> None:
    shown = sft("run", "--help").stdout
    for parameter in PIPELINE.parameters():
        flag = f"--{parameter.step.name}-{parameter.field_name}".replace("_", "-")
        assert flag in shown
    assert "sft run" in sft("--help").stdout
    assert sft("--version").stdout.startswith("sft-pipeline ")


def test_an_unknown_command_is_a_mistake_of_use() -> None:
    assert sft("rum").returncode == 64
