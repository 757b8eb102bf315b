"""The train step by its command: what it refuses, what it leaves, and going on after a kill."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.train import local
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model

TRAIN = [sys.executable, "-m", "steps.train"]
FAST = ["--train-batch=8", "--learning-rate=0.01", "--env-vars="]


def workspace_in(folder: Path, rows: int = 60) -> Path:
    """A run whose dataset step is done."""
    chats = write_chats(folder / "chats.jsonl", rows)
    workspace = folder / "run"
    subprocess.run(
        [
            *(sys.executable, "-m", "steps.dataset"),
            f"--workspace={workspace}",
            f"--data-uri={chats}",
            "--data-split=0.8",
        ],
        check=True,
        capture_output=True,
    )
    return workspace


def train(workspace: Path, model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, f"--workspace={workspace}", f"--model={model}", *FAST, *arguments],
        capture_output=True,
        text=True,
    )


def test_the_model_can_be_loaded_and_says_where_it_comes_from(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_model(tmp_path / "base", "gpt_neox", eos="<|endoftext|>")
    workspace = workspace_in(tmp_path)
    done = train(workspace, base, "--epochs=4", f"--outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((workspace / "train.json").read_text())
    metrics = record["metrics"]
    assert metrics["rows_trained"] == metrics["steps"] / 4 * 8 == 48
    assert metrics["loss_last"] < 0.8 * metrics["loss_first"]
    assert metrics["loss_min"] <= metrics["loss_last"]
    assert metrics["tokens_trained"] > 48
    assert "training on 48 of 48 rows" in done.stderr
    assert record["inputs"]["base_model"]["path"] == str(base)
    assert len((workspace / "training" / "curve.jsonl").read_text().splitlines()) == 24
    assert len((workspace / "tokens" / "eval.jsonl").read_text().splitlines()) == 12
    model = workspace / "model"
    AutoModelForCausalLM.from_pretrained(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    assert tokenizer.chat_template == CHATML
    # The template ends turns with another token than the tokenizer's: what serves it stops at both.
    ends = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert ends == sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert (model / "README.md").read_text().startswith("---\n")
    # Another user serves it: it is as readable as any other file of the run.
    rights = {path.stat().st_mode for path in model.iterdir()}
    assert rights == {(workspace / "train.json").stat().st_mode}
    assert (tmp_path / "out" / "model").read_text() == str(model)
    assert {path.name for path in (workspace / "checkpoints").iterdir()} == {
        "epoch-1",
        "epoch-2",
        "epoch-3",
        "finished.json",
        "fingerprint",
    }


def kill_at(checkpoint: int, workspace: Path, base: Path, number: signal.Signals) -> int:
    """Start training, send the signal when the checkpoint is there, and return the exit code."""
    with subprocess.Popen(
        [*TRAIN, f"--workspace={workspace}", f"--model={base}", *FAST, "--save-samples=8"],
        stderr=subprocess.PIPE,
        text=True,
    ) as step:
        assert step.stderr is not None
        for line in step.stderr:
            if f"checkpoint after step {checkpoint}" in line:
                step.send_signal(number)
                break
        step.stderr.read()
        return step.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_stopped_training_goes_on_to_the_same_losses(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    base = make_model(tmp_path / "base")
    (tmp_path / "whole").mkdir()
    whole, broken = workspace_in(tmp_path / "whole"), workspace_in(tmp_path)
    assert train(whole, base, "--save-samples=8").returncode == 0
    assert kill_at(3, broken, base, number) == code
    assert not (broken / "train.json").exists()
    resumed = train(broken, base, "--save-samples=8")
    assert "going on after step" in resumed.stderr
    curves = [
        [
            json.loads(line)["loss"]
            for line in (run / "training/curve.jsonl").read_text().splitlines()
        ]
        for run in (whole, broken)
    ]
    assert curves[0] == curves[1]
    records = [json.loads((run / "train.json").read_text()) for run in (whole, broken)]
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert records[0]["metrics"]["loss_last"] == records[1]["metrics"]["loss_last"]
    assert weights[0] == weights[1]


def test_what_an_attempt_at_another_result_left_is_not_gone_on_with(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    workspace = workspace_in(tmp_path)
    assert kill_at(2, workspace, base, signal.SIGKILL) == -9
    other = train(workspace, base, "--seed=9")
    assert other.returncode == 0
    assert "going on" not in other.stderr


def test_the_full_state_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    base = make_model(tmp_path / "base")
    assert train(workspace, base, "--save-full-state=True", "--save-epoch=False").returncode == 0
    assert (workspace / "checkpoints" / "state-000000006" / "optimizer.bin").exists()


def test_parameters_that_have_no_effect_here_are_refused_all_at_once(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    refused = train(
        workspace_in(tmp_path),
        base,
        "--check",
        "--workers=2",
        "--labels=team=a",
        "--use-liger",
        "--num-procs=4",
        "--fsdp-sharding=NO_SHARD",
        "--env-vars=nonsense",
    )
    assert refused.returncode == 64
    for name in ("workers", "labels", "use-liger", "num-procs", "fsdp-sharding", "env-vars"):
        assert f"--{name}" in refused.stderr


@pytest.mark.parametrize("content", [None, " \n"])
def test_a_chat_template_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    template = tmp_path / "chat.jinja"
    if content is not None:
        template.write_text(content)
    workspace = workspace_in(tmp_path)
    for further in ([], ["--check"]):
        refused = train(
            workspace, make_model(tmp_path / "base"), f"--chat-template={template}", *further
        )
        assert refused.returncode == 65, refused.stderr
        assert f"{template}: the chat template" in refused.stderr


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("A=1, B=x=y ,C=", {"A": "1", "B": "x=y", "C": ""}),
        ("NCCL_SOCKET_IFNAME=eth0,eth1,NCCL_DEBUG=INFO",
         {"NCCL_SOCKET_IFNAME": "eth0,eth1", "NCCL_DEBUG": "INFO"}),
    ],
)  # fmt: skip
def test_a_comma_in_a_variable_belongs_to_its_value(text: str, variables: dict[str, str]) -> None:
    assert local.environment(text) == (variables, [])


def test_what_is_wrong_with_the_variables_is_told_without_their_values(tmp_path: Path) -> None:
    refused = train(workspace_in(tmp_path), tmp_path, "--env-vars=hunter2-hunter2", "--check")
    assert refused.returncode == 64
    assert "--env-vars" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_a_model_without_a_chat_template_is_refused_before_training_and_takes_a_given_one(
    tmp_path: Path,
) -> None:
    base = make_model(tmp_path / "base", template=None)
    workspace = workspace_in(tmp_path)
    refused = train(workspace, base, "--check")
    assert refused.returncode == 65
    assert "--chat-template" in refused.stderr
    template = tmp_path / "template.jinja"
    template.write_text(CHATML)
    done = train(workspace, base, f"--chat-template={template}")
    assert done.returncode == 0, done.stderr
    assert (workspace / "model" / "chat_template.jinja").read_text() == CHATML


def test_a_template_without_an_end_of_turn_token_is_refused(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    base = make_model(tmp_path / "base", template=plain)
    refused = train(workspace_in(tmp_path), base)
    assert refused.returncode == 65
    assert "never learn to stop" in refused.stderr


def test_a_limit_below_every_row_trains_nothing_and_says_why(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    refused = train(workspace, make_model(tmp_path / "base"), "--max-seq-len=22")
    assert refused.returncode == 65
    assert "nothing is left to train on" in refused.stderr
    assert not (workspace / "model").exists()


def test_a_folder_without_weights_is_no_base_model(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    (base / "model.safetensors").unlink()
    refused = train(workspace_in(tmp_path), base, "--check")
    assert refused.returncode == 65
    assert "no weights" in refused.stderr


def test_zero_epochs_are_refused(tmp_path: Path) -> None:
    refused = train(tmp_path / "run", tmp_path, "--epochs=0")
    assert refused.returncode == 64
    assert "--epochs: input should be greater than 0" in refused.stderr


def test_training_before_the_data_is_there_says_what_to_run(tmp_path: Path) -> None:
    refused = train(tmp_path / "run", make_model(tmp_path / "base"))
    assert refused.returncode == 65
    assert "run the dataset step first" in refused.stderr


def test_environment_variables_are_masked_in_logs_and_records(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    done = train(workspace, make_model(tmp_path / "base"), "--env-vars=API_KEY=hunter2-hunter2")
    assert done.returncode == 0
    written = [
        path.read_text()
        for path in workspace.rglob("*")
        if path.suffix in (".json", ".html", ".log", ".md")
    ]
    assert all("hunter2" not in text for text in [done.stderr, *written])
