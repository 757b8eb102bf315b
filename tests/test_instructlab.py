"""Training on GPUs by instructlab-training: what its worker is told, and what it leaves behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, DataError, StepError
from steps.tokens import ChatTokenizer
from steps.train import instructlab
from steps.train.backend import Job
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
    words = instructlab.command(job, base=job.base, processes=1, flash_attention=False)
    started = subprocess.run(words, capture_output=True, text=True)
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
        "save_samples": 64,
        "seed": 7,
        "distributed_training_framework": "fsdp",
        "fsdp_sharding_strategy": "SHARD_GRAD_OP",
        "checkpoint_at_epoch": True,
        "accelerate_full_state_at_epoch": True,
        "keep_last_checkpoint_only": False,
        "disable_flash_attn": True,
    }
    assert {name: told[name] for name in expected} == expected


def test_only_the_last_model_is_kept_where_no_epoch_or_sample_is_asked_for(tmp_path: Path) -> None:
    job = job_in(tmp_path, save_epoch=False)
    words = instructlab.command(job, base=job.base, processes=4, flash_attention=True)
    assert "--keep_last_checkpoint_only" in words
    assert "--disable_flash_attn" not in words
    assert "--nproc-per-node=4" in words


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 128), (128, 128), (300, 384)])
def test_samples_between_checkpoints_are_whole_batches(asked: int, given: int) -> None:
    assert instructlab.save_samples(asked, 128) == given


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
    view = instructlab._with_template(job)
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
import pathlib, sys
_, path, code, leave, say = sys.argv
pathlib.Path(path).write_text(leave)
print("loading"); print(say)
sys.exit(int(code))
"""


def run_worker(job: Job, code: int, leave: str = "", say: str = "done") -> None:
    words = [sys.executable, "-c", WORKER, str(job.checkpoints / METRICS), str(code), leave, say]
    instructlab._run(words, job)


def test_a_worker_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with pytest.raises(StepError, match="ended with 3:\n  loading\n  NCCL went away"):
        run_worker(job, 3, say="NCCL went away")
    with pytest.raises(ConfigError, match="lower --tokens"):
        run_worker(job, 1, say="torch.OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    ("leave", "kind", "message"),
    [
        ("", StepError, "without a single step"),
        (metric(16, 3.0), StepError, "stopped after step 1 of 3"),
        (metric(16, float("nan")), DataError, "diverged at step 1"),
    ],
)
def test_a_worker_that_says_success_without_it_is_not_believed(
    tmp_path: Path, leave: str, kind: type[StepError], message: str
) -> None:
    job = job_in(tmp_path, train_batch=16)
    run_worker(job, 0, leave)
    with pytest.raises(kind, match=message):
        instructlab._check(job, instructlab.curve(job))


def test_the_newest_model_is_picked_by_its_samples_and_linked_not_copied(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    for samples in (1000, 200):
        folder = job.checkpoints / "hf_format" / f"samples_{samples}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(str(samples))
    newest = instructlab._newest(job.checkpoints)
    instructlab._link(newest, job.checkpoints / "model")
    model = job.checkpoints / "model" / "model.safetensors"
    assert model.read_text() == "1000"
    assert model.stat().st_nlink == 2


def test_partial_states_and_foreign_entries_do_not_stand_in_a_resumes_way(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    states = job.checkpoints / "full_state"
    for name in ("epoch_0", "epoch_1", "lost+found", ".snapshot"):
        (states / name).mkdir(parents=True)
    (states / "epoch_0" / "training_metadata.json").write_bytes(b"PK")
    instructlab._remove_partial_states(job.checkpoints)
    assert [path.name for path in states.iterdir()] == ["epoch_0"]
