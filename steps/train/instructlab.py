"""Training on GPUs by instructlab-training's worker, started by torchrun with the flags that reach it.

The library's `run_training` is not used: it drops the seed and the scheduler, passes a Liger flag
that nothing reads, tokenises again, and reports success when nothing was started (0.16.2). Its
worker takes all of these on its command line, and what it left behind is checked here.
"""

import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from steps import files
from steps.errors import ConfigError, DataError, StepError, Terminated
from steps.progress import progress
from steps.signals import end_with_parent
from steps.train.backend import Job, Point

log = logging.getLogger(__name__)

WORKER = "instructlab.training.main_ds"
_METRICS = "training_params_and_metrics_global0.jsonl"
_LINES_SHOWN = 20
_SECONDS_TO_STOP = 30


def train(job: Job) -> list[Point]:
    """Train on this machine's GPUs, and leave the model in `checkpoints/model`.

    Goes on from the newest full state in `checkpoints/`. Raises ConfigError when memory ran out,
    DataError when the loss is no longer a number, StepError with the worker's last lines else.
    """
    _remove_partial_states(job.checkpoints)
    words = _command_here(job, _with_template(job))
    if job.params.checkpoint_minutes:
        log.info(
            "on GPUs the full state is kept at the end of each epoch; checkpoint_minutes counts for nothing"
        )
    log.info("starting %s", " ".join(words))
    _run(words, job)
    points = curve(job)
    _check(job, points)
    files.write(job.curve, "".join(json.dumps(vars(point)) + "\n" for point in points))
    _link(_newest(job.checkpoints), job.checkpoints / "model")
    return points


def describe(job: Job) -> str:
    """The command that `train` would start here, as a line for a shell."""
    return shlex.join(_command_here(job, _view(job) if job.chat_template else job.base)) + "\n"


def _command_here(job: Job, base: Path) -> list[str]:
    import torch

    return command(
        job,
        base=base,
        processes=processes(job.params.num_procs, torch.cuda.device_count()),
        flash_attention=_has_flash_attention(torch.cuda.get_device_capability()),
    )


def command(job: Job, *, base: Path, processes: int, flash_attention: bool) -> list[str]:
    """The argument list that starts torchrun with the library's worker.

    Every flag is one of `instructlab/training/main_ds.py`; defaults that differ from ours are
    always given.
    """
    params = job.params
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "--module",
        WORKER,
        f"--model_name_or_path={base}",
        f"--model-class={'Liger' if params.use_liger else 'CausalLM'}",
        f"--data_path={job.tokens}",
        f"--output_dir={job.checkpoints}",
        f"--num_epochs={params.epochs}",
        f"--effective_batch_size={params.train_batch}",
        f"--max_batch_len={params.tokens}",
        f"--learning_rate={params.learning_rate}",
        f"--lr_scheduler={params.lr_scheduler}",
        f"--num_warmup_steps={params.lr_warmup}",
        f"--save_samples={save_samples(params.save_samples, params.train_batch)}",
        f"--seed={params.seed}",
        "--distributed_training_framework=fsdp",
        f"--fsdp_sharding_strategy={params.fsdp_sharding}",
        # The full state is written with the epoch's model only, and a restart needs it.
        "--checkpoint_at_epoch",
        "--accelerate_full_state_at_epoch",
    ]
    if not params.save_epoch and not params.save_samples:
        words.append("--keep_last_checkpoint_only")
    if not flash_attention:
        words.append("--disable_flash_attn")
    return words


def save_samples(asked: int, batch: int) -> int:
    """The samples between checkpoints, rounded up to whole batches.

    The worker saves where the samples seen are an exact multiple, so no other number would fire.
    """
    return math.ceil(asked / batch) * batch


def curve(job: Job) -> list[Point]:
    """The loss curve from the worker's metrics, a restart's repeated steps counted once."""
    path = job.checkpoints / _METRICS
    points: dict[int, Point] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off by a kill
        if "avg_loss" not in found or "samples_seen" not in found:
            continue
        samples = found["samples_seen"]
        # The worker counts steps anew after a restart; samples it counts on.
        epochs, rest = divmod(samples, job.rows)
        step = epochs * job.steps_an_epoch + math.ceil(rest / job.params.train_batch)
        seconds = found["batch_size"] / max(found["overall_throughput"], 1e-9)
        points[step] = Point(
            step=step,
            epoch=round(samples / job.rows, 4),
            loss=found["avg_loss"],
            lr=found["lr"],
            tokens_per_second=round(found["num_tokens_rank0"] / max(seconds, 1e-9), 1),
        )
    return [points[step] for step in sorted(points)]


def _run(words: list[str], job: Job) -> None:
    tail: deque[str] = deque(maxlen=_LINES_SHOWN)
    # The interpreter's folder may not be on PATH; torchrun's own children look there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": path},
        start_new_session=True,
        # A step that is killed must not leave processes on the GPUs.
        preexec_fn=partial(end_with_parent, os.getpid()),
    ) as worker:
        reader = threading.Thread(target=_forward, args=(worker, tail))
        reader.start()
        try:
            _follow(worker, job)
        except (KeyboardInterrupt, Terminated):
            worker.terminate()
            try:
                worker.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                worker.kill()
            raise
        finally:
            reader.join()
    if worker.returncode:
        last = "\n  ".join(tail)
        if any("out of memory" in line.lower() for line in tail):
            raise ConfigError(
                "the GPU's memory ran out: lower --tokens or --max-seq-len, or use more GPUs\n  "
                + last
            )
        raise StepError(f"the training worker ended with {worker.returncode}:\n  {last}")


def _follow(worker: "subprocess.Popen[str]", job: Job) -> None:
    with progress("training", job.steps, "steps") as shown:
        while True:
            try:
                worker.wait(1.0)
                return
            except subprocess.TimeoutExpired:
                points = curve(job)
                if points:
                    last = points[-1]
                    shown.update(
                        last.step,
                        loss=f"{last.loss:.4f}",
                        tokens_per_second=f"{last.tokens_per_second:,.0f}",
                    )


def _forward(worker: "subprocess.Popen[str]", tail: deque[str]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip():
            tail.append(line.rstrip())
            log.debug("%s", line.rstrip())


def _check(job: Job, points: list[Point]) -> None:
    """The worker exits 0 also when it trained nothing, or not to the end."""
    if not points:
        raise StepError("the training worker ended without a single step; see the log")
    bad = next((point for point in points if not math.isfinite(point.loss)), None)
    if bad:
        raise DataError(
            f"training diverged at step {bad.step}: the loss is {bad.loss}; "
            "lower --learning-rate or raise --lr-warmup"
        )
    if points[-1].step < job.steps:
        raise StepError(
            f"the training worker stopped after step {points[-1].step} of {job.steps}; "
            "run the same command to go on"
        )


def _newest(checkpoints: Path) -> Path:
    """The last model that the worker saved: by its samples, not by file times."""
    last = checkpoints / "hf_format" / "last_epoch"
    if last.is_dir():
        return last
    found = {
        int(folder.name.removeprefix("samples_")): folder
        for folder in (checkpoints / "hf_format").glob("samples_[0-9]*")
    }
    if not found:
        raise StepError(f"{checkpoints}: the training worker saved no model; see the log")
    return found[max(found)]


def _link(folder: Path, target: Path) -> None:
    """The folder's files under another name, without a second copy of the weights."""
    with files.atomic_folder(target) as partial:
        shutil.copytree(folder, partial, copy_function=os.link, dirs_exist_ok=True)


def _with_template(job: Job) -> Path:
    """The base model; under a given chat template a view of it, for the worker wants one there."""
    if job.chat_template is None:
        return job.base
    from transformers import AutoTokenizer

    view = _view(job)
    with files.atomic_folder(view) as folder:
        for pattern in ("config.json", "generation_config.json", "*.safetensors*", "*.bin*"):
            for file in job.base.glob(pattern):
                (folder / file.name).symlink_to(file.resolve())
        tokenizer: Any = AutoTokenizer.from_pretrained(job.base)
        tokenizer.chat_template = job.chat_template
        tokenizer.save_pretrained(folder)
    return view


def _view(job: Job) -> Path:
    return job.checkpoints / "base"


def _remove_partial_states(checkpoints: Path) -> None:
    """Remove what would crash the worker's resume: states cut off by a kill, foreign entries."""
    for entry in _entries(checkpoints / "full_state"):
        number = entry.name.removeprefix("epoch_")
        if not number.isdigit() or not (entry / "training_metadata.json").exists():
            log.warning("%s is not a whole training state; removed", entry)
            files.remove(entry)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def processes(asked: str, gpus: int) -> int:
    """How many processes `--num-procs` asks for; ConfigError where there are fewer GPUs."""
    if asked == "auto":
        return gpus
    if int(asked) > gpus:
        raise ConfigError(f"--num-procs {asked}: this machine has {gpus} GPUs, one a process")
    return int(asked)


def _has_flash_attention(capability: tuple[int, int]) -> bool:
    """Whether the worker would accept flash attention: Ampere to Hopper, and the package is there."""
    import importlib.util

    supported = capability[0] == 8 or capability == (9, 0)
    return supported and importlib.util.find_spec("flash_attn") is not None
