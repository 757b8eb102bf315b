"""Training on GPUs by instructlab-training: what its worker is told, and what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, DataError, StepError, Terminated, VolumeError
from steps.tokens import ChatTokenizer
from steps.train import instructlab, rank
from steps.train.backend import Job
from steps.train.node import Node
from steps.train.params import TrainParams
from steps.train.tokenize import write_tokens
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model

METRICS = "training_params_and_metrics_global0.jsonl"


def job_in(folder: Path, rows: int = 40, **params: Any) -> Job:
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    return Job(
        TrainParams(**params),
        folder / "base",
        folder / "tokens.jsonl",
        rows,
        checkpoints,
        folder / "curve.jsonl",
    )


def test_every_parameter_reaches_the_librarys_worker(tmp_path: Path) -> None:
    """The worker writes the arguments that it parsed before it looks for a GPU."""
    job = job_in(
        tmp_path,
        train_batch=16,
        epochs=3,
        tokens=4096,
        learning_rate=2e-4,
        lr_warmup=5,
        lr_scheduler="linear",
        save_samples=50,
        seed=7,
        use_liger=True,
        fsdp_sharding="SHARD_GRAD_OP",
    )
    make_model(job.base)
    write_tokens(write_chats(tmp_path / "chats.jsonl"), job.tokens, ChatTokenizer.load(job.base))
    job.write(job.file)
    words = instructlab.command(job, base=job.base, processes=1, flash_attention=False)
    environment = {**os.environ, rank.FOLDER: str(tmp_path)}
    started = subprocess.run(words, capture_output=True, text=True, env=environment)
    told = json.loads((job.checkpoints / METRICS).read_text().splitlines()[0])
    assert "unrecognized arguments" not in started.stderr
    expected = {
        "model_name_or_path": str(job.base),
        "model_class": "Liger",
        "data_path": str(job.tokens),
        "output_dir": str(job.checkpoints),
        "num_epochs": 3,
        "effective_batch_size": 16,
        "max_batch_len": 4096,
        "learning_rate": 2e-4,
        "lr_scheduler": "linear",
        "num_warmup_steps": 5,
        "save_samples": 0,
        "seed": 7,
        "distributed_training_framework": "fsdp",
        "fsdp_sharding_strategy": "SHARD_GRAD_OP",
        "checkpoint_at_epoch": False,
        "disable_flash_attn": True,
    }
    assert {name: told[name] for name in expected} == expected


def test_what_to_keep_reaches_every_process_by_the_jobs_file_and_secrets_do_not(
    tmp_path: Path,
) -> None:
    job = job_in(
        tmp_path,
        save_epoch=False,
        save_samples=300,
        save_full_state=True,
        checkpoint_minutes=5,
        hf_token="hf_hidden",
        env_vars="WANDB_API_KEY=hidden",
    )
    job.write(job.file)
    assert "hidden" not in job.file.read_text()
    read = Job.read(job.file)
    kept = ("save_epoch", "save_samples", "save_full_state", "checkpoint_minutes")
    assert [getattr(read.params, name) for name in kept] == [False, 300, True, 5]
    assert (read.base, read.tokens, read.curve) == (job.base, job.tokens, job.curve)
    job.file.write_text("{}")
    with pytest.raises(ConfigError, match=r"job\.json: not a job of this version"):
        Job.read(job.file)


def test_a_node_of_several_is_told_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed.run

    torchrun: Any = torch.distributed.run
    job = job_in(tmp_path)
    words = instructlab.command(
        job,
        base=job.base,
        processes=8,
        flash_attention=True,
        node=Node(count=4, rank=2, address="job-node-0-0.job", port=29501),
    )
    assert "--disable_flash_attn" not in words
    # As torchrun itself reads them; it sets the variable where it is not set.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = torchrun.parse_args(words[words.index("torch.distributed.run") + 1 :])
    read, *_ = torchrun.config_from_args(flags)
    assert (read.min_nodes, read.max_nodes, read.nproc_per_node) == (4, 4, 8)
    assert (read.rdzv_backend, read.rdzv_endpoint) == ("static", "job-node-0-0.job:29501")
    # By itself torchrun gives up after 15 minutes, and the cluster may need days for all pods.
    assert read.rdzv_configs == {"rank": 2, "timeout": "604800"}


@pytest.mark.parametrize(
    ("by_runtime", "asked", "gpus", "started"),
    [("auto", "auto", 8, 8), ("4", "auto", 8, 4), ("auto", "2", 8, 2), ("2", "2", 8, 2)],
)
def test_there_is_a_process_a_gpu_where_nothing_else_is_asked_for(
    by_runtime: str, asked: str, gpus: int, started: int
) -> None:
    assert instructlab.processes(asked, gpus, by_runtime=by_runtime) == started


@pytest.mark.parametrize(
    ("by_runtime", "asked", "gpus", "message"),
    [
        ("4", "auto", 1, "4 processes.*1 GPUs"),
        ("auto", "auto", 0, "0 GPUs"),
        ("4", "2", 8, "--num-procs is 2"),
    ],
)
def test_processes_that_the_gpus_do_not_allow_are_refused(
    by_runtime: str, asked: str, gpus: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        instructlab.processes(asked, gpus, by_runtime=by_runtime)


def test_a_given_chat_template_reaches_the_worker_with_the_base_models_weights(
    tmp_path: Path,
) -> None:
    base = make_model(tmp_path / "base", template=None)
    job = Job(
        TrainParams(),
        base,
        tmp_path / "tokens.jsonl",
        1,
        tmp_path / "checkpoints",
        tmp_path / "curve.jsonl",
        chat_template=CHATML,
    )
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    view = instructlab._with_template(job, tmp_path / "view")
    assert (view / "chat_template.jinja").read_text() == CHATML
    assert (view / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def metric(samples: int, loss: float, **more: Any) -> str:
    return json.dumps(
        {
            "step": samples // 16,
            "samples_seen": samples,
            "avg_loss": loss,
            "lr": 1e-5,
            "batch_size": 16,
            "overall_throughput": 8.0,
            "num_tokens_rank0": 3200,
            **more,
        }
    )


def test_the_curve_counts_a_restarts_steps_once_and_skips_what_was_cut_off(tmp_path: Path) -> None:
    job = job_in(tmp_path, train_batch=16, epochs=2)
    lines = [
        json.dumps({"seed": 7}),
        json.dumps({"num_gpus": 1, "total_samples": 40}),
        metric(16, 3.0),
        metric(32, 2.0),
        '{"step": 3, "avg_lo',
        metric(32, 2.5, step=1),
        metric(40, 1.5),
        metric(56, 1.0, step=1),
    ]
    (job.checkpoints / METRICS).write_text("\n".join(lines) + "\n")
    points = instructlab.curve(job)
    assert instructlab.latest(job) == points[-1]
    assert [(point.step, point.loss) for point in points] == [
        (1, 3.0),
        (2, 2.5),
        (3, 1.5),
        (4, 1.0),
    ]
    assert points[0].tokens_per_second == 1600
    assert points[-1].epoch == 1.4


# A worker in place of torchrun's: a process that leaves what it is told to leave.
WORKER = """
import os, pathlib, sys
_, path, code, leave, say, end = sys.argv
pathlib.Path(path).write_text(leave)
if end:
    pathlib.Path(os.environ["SFT_NODE_FOLDER"], "end-0.json").write_text(end)
print("loading"); print(say)
sys.exit(int(code))
"""


def run_worker(job: Job, status: int, leave: str = "", say: str = "done", **end: Any) -> None:
    words = [sys.executable, "-c", WORKER, str(job.checkpoints / METRICS), str(status), leave, say]
    scratch = job.checkpoints / "scratch"
    scratch.mkdir()
    instructlab._run([*words, json.dumps(end) if end else ""], job, scratch)


@pytest.mark.parametrize(
    ("say", "end", "kind", "message"),
    [
        ("NCCL went away", {}, StepError, "ended with 3:\n  loading\n  NCCL went away"),
        ("Signal 9\n exitcode  : -9 (pid: 7)", {}, ConfigError, "raise --memory"),
        ("Watchdog caught collective operation timeout", {}, StepError, "has stopped answering"),
        ("", {"code": 78, "message": "lower --tokens"}, ConfigError, "^lower --tokens$"),
        ("", {"code": 65, "message": "training diverged"}, DataError, "^training diverged$"),
        ("", {"code": 74, "message": "enlarge the volume"}, VolumeError, "^enlarge the volume$"),
        (
            "",
            {"code": 1, "message": "KeyError: 'x'"},
            StepError,
            "failed: KeyError: 'x'\n  loading",
        ),
    ],
)
def test_a_worker_that_fails_tells_why_or_shows_its_last_lines(
    tmp_path: Path, say: str, end: dict[str, Any], kind: type[StepError], message: str
) -> None:
    job = job_in(tmp_path)
    if end:
        end["time"] = 1.0
    with pytest.raises(StepError, match=message) as raised:
        run_worker(job, 3, "", say, **end)
    assert type(raised.value) is kind


def test_a_worker_that_ends_well_before_the_last_step_was_stopped(tmp_path: Path) -> None:
    job = job_in(tmp_path, train_batch=16)
    with pytest.raises(Terminated):
        run_worker(job, 0, step=2)


def test_a_worker_that_says_nothing_of_its_end_is_not_taken_for_one_that_was_stopped(
    tmp_path: Path,
) -> None:
    with pytest.raises(StepError, match="ended without a word:\n  loading"):
        run_worker(job_in(tmp_path), 0)


@pytest.mark.parametrize(
    ("leave", "kind", "message"),
    [
        ("", StepError, "without a single step"),
        (metric(16, 3.0), StepError, "stopped after step 1 of 3"),
        (metric(16, float("nan")), DataError, "diverged at step 1"),
        (metric(40, 1.0), StepError, "saved no model"),
    ],
)
def test_a_worker_that_says_success_without_it_is_not_believed(
    tmp_path: Path, leave: str, kind: type[StepError], message: str
) -> None:
    job = job_in(tmp_path, train_batch=16)
    run_worker(job, 0, leave, step=job.steps)
    with pytest.raises(kind, match=message):
        instructlab.results(job)
