"""The train step by its command: what it refuses, what it leaves, and going on after a kill."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.tokens import ChatTokenizer
from steps.train.tokenize import write_tokens
from steps.train.variables import environment
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model

TRAIN = [sys.executable, "-m", "steps.train"]
FAST = ["--train-batch=8", "--learning-rate=0.01", "--env-vars="]


def workspace_in(folder: Path, rows: int = 60, words: int = 30) -> Path:
    """A run whose dataset step is done."""
    chats = write_chats(folder / "chats.jsonl", rows, words)
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


def train(
    workspace: Path, model: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, f"--workspace={workspace}", f"--model={model}", *FAST, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
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
    tokens, foreign = broken / "tokens" / "train.jsonl", broken / "checkpoints" / ".snapshot"
    made = tokens.stat().st_ino
    foreign.mkdir()
    resumed = train(broken, base, "--save-samples=8")
    assert "going on after step" in resumed.stderr
    assert tokens.stat().st_ino == made  # workers of a cluster may be reading them
    assert foreign.exists()
    curves = [
        [json.loads(line) for line in (run / "training/curve.jsonl").read_text().splitlines()]
        for run in (whole, broken)
    ]
    told = [[(point["loss"], point.get("heldout")) for point in curve] for curve in curves]
    assert told[0] == told[1]
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


def test_a_damaged_model_is_made_anew(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    weights = workspace / "model" / "model.safetensors"
    assert train(workspace, base).returncode == 0
    whole = weights.read_bytes()
    for damage in (lambda: weights.write_bytes(whole[:-1]), weights.unlink):
        damage()
        again = train(workspace, base)
        assert again.returncode == 0, again.stderr
        assert "already done" not in again.stderr
        assert weights.read_bytes() == whole


# The first is too small for the weights of a full state, the second for its optimizer.
@pytest.mark.parametrize("bytes_a_file", [60_000, 160_000])
def test_a_volume_that_takes_no_checkpoint_is_told_as_such(
    tmp_path: Path, bytes_a_file: int
) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    limits = (bytes_a_file, bytes_a_file)
    full = subprocess.run(
        [*TRAIN, f"--workspace={workspace}", f"--model={base}", *FAST],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    assert full.returncode == 74, full.stderr
    assert f"{workspace / 'checkpoints' / 'state-000000006'}" in full.stderr
    assert "enlarge" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list((workspace / "checkpoints").glob("state-*"))


def test_the_tokenisers_processes_end_with_a_killed_step(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path, 600, words=6000), make_model(tmp_path / "base")
    assert (workspace / "dataset" / "train.jsonl").stat().st_size > 5 << 20
    pipe = tmp_path / "progress"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [*TRAIN, f"--workspace={workspace}", f"--model={base}", *FAST],
        env={**os.environ, "ARGO_PROGRESS_FILE": str(pipe)},
        stderr=subprocess.PIPE,
        text=True,
    ) as step:
        pipe.read_text()  # written once the first rows are back from a process
        step.kill()
        # Every process that lives holds the other end of this.
        _, told = step.communicate(timeout=60)
    assert "training on" not in told


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
        "--lr-scheduler=constant",
        "--lr-warmup=5",
    )
    assert refused.returncode == 64
    for name in (
        *("workers", "labels", "use-liger", "num-procs", "fsdp-sharding", "env-vars"),
        "lr-warmup",
    ):
        assert f"--{name}" in refused.stderr


@pytest.mark.parametrize(
    ("place", "needed"),
    [
        ({}, "a cluster"),
        (
            {"KUBERNETES_SERVICE_HOST": "192.0.2.1"},
            "a TrainJob (launcher: trainjob in sft.yaml)",
        ),
    ],
)
def test_what_one_pod_cannot_serve_is_refused_with_what_can(
    place: dict[str, str], needed: str, tmp_path: Path
) -> None:
    given = ["--launcher=local", "--workers=2", "--check"]
    refused = train(workspace_in(tmp_path), make_model(tmp_path / "base"), *given, **place)
    assert refused.returncode == 64, refused.stderr
    assert f"--workers needs {needed}: leave it at its default here" in refused.stderr


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
    assert environment(text) == (variables, [])


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs=0"], "--epochs: input should be greater than 0"),
        (["--seed=-1"], "--seed: input should be greater than or equal to 0"),
        (["--seed=4294967296"], "--seed: input should be less than 4294967296"),
        (["--learning-rate=0"], "--learning-rate: input should be greater than 0"),
        (["--learning-rate=nan"], "--learning-rate: input should be a finite number"),
        (["--learning-rate=inf"], "--learning-rate: input should be a finite number"),
        (["--learning-rate=1e31"], "--learning-rate: input should be less than or equal to"),
        (["--lr-scheduler=polynomial", "--learning-rate=1e-8"], "polynomial goes down to 1e-07"),
    ],
)
def test_what_is_out_of_range_is_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    base = make_model(tmp_path / "base")
    refused = train(tmp_path / "run", base, "--check", *arguments)
    assert refused.returncode == 64
    assert told in refused.stderr


def test_a_chat_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    refused = train(workspace_in(tmp_path), base, f"--chat-template={tmp_path / 'none.jinja'}")
    assert refused.returncode == 65
    assert "none.jinja: the chat template cannot be read" in refused.stderr


def test_the_log_says_what_is_trained_on_and_what_is_left_out(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    lengths = sorted(
        json.loads(line)["len"]
        for line in (tokens_of(workspace, base, tmp_path)).read_text().splitlines()
    )
    longest = lengths[30]
    kept = sum(length <= longest for length in lengths)
    done = train(
        workspace,
        base,
        f"--max-seq-len={longest}",
        "--train-batch=100",
        "--lr-warmup=3",
        "--env-vars=OMP_NUM_THREADS=1",
    )
    assert done.returncode == 0, done.stderr
    assert f"training on {kept} of 48 rows" in done.stderr
    assert f"{longest} in the longest row of {longest} allowed; 12 rows are held out" in done.stderr
    dropped = f"{48 - kept} longer than {longest} tokens (--max-seq-len)"
    assert f"rows left out: {dropped}" in done.stderr
    assert f"1 optimizer steps: 1 epoch(s) of 1, {kept} rows each" in done.stderr
    assert f"all {kept} rows are one step" in done.stderr
    assert "the warm-up of 3 steps outlasts the training" in done.stderr
    assert "on 1 threads of the CPU" in done.stderr


def tokens_of(workspace: Path, base: Path, folder: Path) -> Path:
    tokens = folder / "tokens.jsonl"
    write_tokens(workspace / "dataset" / "train.jsonl", tokens, ChatTokenizer.load(base))
    return tokens


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
