"""What only a CUDA GPU can show: its losses against the CPU's, going on after a kill, and its speed.

    make gpu-check [PYTHON=python3]

Trains a small model on generated chats: on the GPU and on the CPU, whose loss curves are compared
(their words are random: nothing is learnt at a sudden, which small differences would shift); again until a checkpoint by time is there, with a kill after it and going on; and
by TRL's SFTTrainer with the same batch, whose tokens a second stand beside ours. Flash attention is
used where it is there.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROWS, ROWS_A_STEP = 9600, 32
WINDOW = 20
"""Steps whose mean loss is compared: single ones differ by what bf16 rounds away."""
TOLERANCE = 0.05
STEPS_PAST_THE_STATE = 20
NEEDED = (
    *("accelerate", "aiofiles", "datasets", "instructlab.training", "numba", "orjson", "peft"),
    *("pydantic", "rich", "tokenizers", "torch", "transformers"),
)


def main(folder: Path) -> None:
    """Print what was compared and measured. Exits with a message where the GPU fails to do as said."""
    if missing := [name for name in NEEDED if not _is_there(name)]:
        sys.exit(
            f"gpu-check: {sys.executable} lacks {', '.join(missing)}; carry them there as files "
            "(pip install --target FOLDER) and name the folder in PYTHONPATH"
        )
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu-check: torch sees no CUDA GPU here, so nothing was checked")
    from steps.train import instructlab

    has_flash = instructlab._has_flash_attention(torch.cuda.get_device_capability())
    print(
        f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}, flash attention "
        f"{'on' if has_flash else 'off'}",
        flush=True,
    )
    losses(folder)
    resume(folder)
    speed(folder)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def job_in(folder: Path, name: str, **params: Any) -> Any:
    """A job on the same model and chats as the others."""
    from benchmarks.inputs import make_chats, model
    from steps.tokens import ChatTokenizer
    from steps.train.backend import Job
    from steps.train.params import TrainParams
    from steps.train.tokenize import Limits, write_tokens

    tokens = folder / "tokens.jsonl"
    if not tokens.exists():
        chats = make_chats(folder / "chats.jsonl", ROWS, mean_words=20)
        write_tokens(chats, tokens, ChatTokenizer.load(model(folder)), Limits(20, 511))
    with tokens.open("rb") as lines:
        rows = sum(1 for _ in lines)
    values = {"train_batch": ROWS_A_STEP, "learning_rate": 1e-3, "lr_warmup": 20, **params}
    place = folder / name
    place.mkdir()
    params_ = TrainParams(**{"tokens": 4096, "save_epoch": False, **values})
    return Job(params_, folder / "model", tokens, rows, place, place / "curve.jsonl")


def losses(folder: Path) -> None:
    """An epoch on the GPU against the same on the CPU."""
    from steps.train import cpu, instructlab

    begun = time.monotonic()
    ours = [point.loss for point in instructlab.train(job_in(folder, "gpu"))]
    middle = time.monotonic()
    theirs = [point.loss for point in cpu.train(job_in(folder, "cpu"))]
    apart = difference(ours, theirs)
    print(
        f"losses     {len(ours)} steps: {ours[0]:.3f} to {ours[-1]:.3f} on the GPU in "
        f"{middle - begun:.0f} s, {theirs[0]:.3f} to {theirs[-1]:.3f} on the CPU in "
        f"{time.monotonic() - middle:.0f} s; at most {apart:.4f} apart over {WINDOW} steps",
        flush=True,
    )
    if apart > TOLERANCE:
        sys.exit(f"gpu-check: the losses are {apart:.4f} apart, more than {TOLERANCE}")


def difference(ours: Sequence[float], theirs: Sequence[float], window: int = WINDOW) -> float:
    """How far two loss curves are apart at most, as means over so many steps."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} steps against {len(theirs)}")
    return max(
        abs(fmean(ours[at : at + window]) - fmean(theirs[at : at + window]))
        for at in range(0, len(ours), window)
    )


def resume(folder: Path) -> None:
    """A kill some steps after a checkpoint by time: the next attempt takes these steps again."""
    from steps.train import checkpoints, instructlab

    # A row a step, so that the epoch lasts longer than the minute.
    job = job_in(folder, "resumed", train_batch=1, checkpoint_minutes=1)
    job.write(job.file)
    metrics = job.checkpoints / instructlab.METRICS
    worker = _start(job)
    while (state := checkpoints.newest(job.checkpoints, "GPU")) is None:
        _next(worker)
    _until(worker, job, state.step + STEPS_PAST_THE_STATE)
    worker.kill()
    worker.communicate()
    before = {point.step: point.loss for point in instructlab.curve(job)}
    metrics.rename(metrics.with_suffix(".before"))
    worker = _start(job)
    _until(worker, job, state.step + STEPS_PAST_THE_STATE)
    worker.send_signal(signal.SIGTERM)
    worker.communicate()
    after = {point.step: point.loss for point in instructlab.curve(job)}
    if worker.returncode != 143:
        sys.exit(f"gpu-check: a training that was stopped ended with {worker.returncode}, not 143")
    if min(after) != state.step + 1:
        sys.exit(f"gpu-check: went on with step {min(after)} after a state of step {state.step}")
    again = sorted(before.keys() & after.keys())
    apart = difference([after[step] for step in again], [before[step] for step in again])
    print(
        f"resume     killed after step {max(before)}, went on after step {state.step}, a checkpoint "
        f"by time; the {len(again)} steps taken twice are at most {apart:.4f} apart",
        flush=True,
    )
    if apart > TOLERANCE:
        sys.exit(f"gpu-check: steps taken twice are {apart:.4f} apart, more than {TOLERANCE}")


def _start(job: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "steps.train.worker", str(job.file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )


def _next(worker: "subprocess.Popen[str]") -> str:
    """The worker's next line; it writes some for every step."""
    assert worker.stderr is not None
    if line := worker.stderr.readline():
        return line
    sys.exit(f"gpu-check: the worker ended with {worker.wait()}; run it again to see its lines")


def _until(worker: "subprocess.Popen[str]", job: Any, step: int) -> None:
    from steps.train import instructlab

    while (last := instructlab.latest(job)) is None or last.step < step:
        _next(worker)


def speed(folder: Path) -> None:
    """Tokens a second in training, start and first step left out, beside TRL's SFTTrainer."""
    from steps.train import instructlab
    from steps.train.backend import metrics

    ours = metrics(instructlab.curve(job_of(folder, "gpu")))["tokens_per_second"]
    if not _is_there("trl"):
        print(f"speed      {ours:,.0f} tokens/s; TRL is not there to stand beside it")
        return
    theirs = trl(folder)
    print(f"speed      {ours:,.0f} tokens/s, TRL's SFTTrainer {theirs:,.0f}: {ours / theirs:.2f}x")


def job_of(folder: Path, name: str) -> Any:
    """The job that was trained in the folder."""
    from steps.train.backend import Job

    return Job.read(folder / name / "job.json")


def trl(folder: Path) -> float:
    """Tokens a second of an epoch of TRL's SFTTrainer on the same rows, batch and precision."""
    import orjson
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    library: Any = importlib.import_module("trl")

    class Clock(TrainerCallback):
        begun = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step == 1:
                self.begun = time.perf_counter()

    job = job_of(folder, "gpu")
    rows = [orjson.loads(line) for line in job.tokens.read_bytes().splitlines()]
    clock = Clock()
    trainer = library.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(job.base),
        args=library.SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=job.params.train_batch,
            num_train_epochs=1,
            learning_rate=job.params.learning_rate,
            bf16=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        ),
        callbacks=[clock],
    )
    trainer.train()
    seconds = time.perf_counter() - clock.begun
    tokens = sum(int(row["len"]) for row in rows)
    # The first step, which warms up, is left out here as there.
    return float(tokens * (1 - 1 / job.steps) / seconds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
