"""Training on GPUs by instructlab-training's worker, started by torchrun with the flags that reach it.

The library's `run_training` is not used: it drops the seed and the scheduler, passes a Liger flag
that nothing reads, tokenises again, and reports success when nothing was started (0.16.2). Its
worker takes all of these on its command line; `steps.train.rank` runs it and keeps its checkpoints.
"""

import importlib.util
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from steps import files
from steps.errors import ConfigError, DataError, StepError, Terminated, VolumeError
from steps.progress import progress
from steps.signals import end_with_parent
from steps.train import rank
from steps.train.backend import Job, Point
from steps.train.node import Node

log = logging.getLogger(__name__)

METRICS = "training_params_and_metrics_global0.jsonl"
"""The library's file of a line a step, in `checkpoints/`."""
_LINES_SHOWN = 20
_BYTES_OF_LAST_LINES = 1 << 16
_SECONDS_TO_SAVE = 600
"""To end a step and write the state; who has less time (a pod being drained) is killed earlier."""
_SECONDS_TO_MEET = 7 * 24 * 3600
"""For all nodes to be there. By itself torchrun gives up after 15 minutes, as where one of them has to
wait for room or for its image; how long a job may hold its GPUs is its deadline's to say."""
_KILLED = re.compile(r"exitcode\s*:\s*-9\b")


def train(job: Job) -> list[Point]:
    """Train on this machine's GPUs, and leave the model in `checkpoints/model`.

    Goes on from the newest full state in `checkpoints/`. Raises ConfigError when memory ran out,
    DataError when the loss is no longer a number, StepError with the worker's last lines else.
    """
    job.write(job.file)
    train_node(job, Node())
    return results(job)


def train_node(job: Job, node: Node, *, level: int = logging.DEBUG) -> None:
    """Run this node's part of the training to its end; its lines are logged at `level`.

    Raises what `train` raises, and Terminated where the training was stopped before its end.
    """
    if job.model.is_dir():
        log.info("%s is there: the training has ended", job.model)
        return
    if job.params.use_liger and importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(
            "--use-liger: the package liger-kernel is not installed here; add it to the image, or "
            "leave the flag out"
        )
    import torch

    with tempfile.TemporaryDirectory(prefix="sft-") as name:
        folder = Path(name)
        words = command(
            job,
            # Made on each node for itself: nothing on a shared volume is written by two.
            base=_with_template(job, folder / "base"),
            processes=processes(
                job.params.num_procs, torch.cuda.device_count(), by_runtime=node.processes
            ),
            flash_attention=_has_flash_attention(torch.cuda.get_device_capability()),
            node=node,
        )
        log.info("starting %s", " ".join(words))
        try:
            _run(words, job, folder, level)
        except StepError as error:
            if node.count == 1:
                raise
            raise type(error)(f"{node}: {error}") from error


def results(job: Job) -> list[Point]:
    """The loss curve of a training that has ended, written to the run's file too.

    Raises StepError where the worker said success and trained nothing, or not to the end.
    """
    points = curve(job)
    if not points:
        raise StepError("the training worker ended without a single step; see the log")
    if bad := next((point for point in points if not math.isfinite(point.loss)), None):
        raise rank.diverged(bad.step, bad.loss)
    if points[-1].step < job.steps:
        raise StepError(
            f"the training worker stopped after step {points[-1].step} of {job.steps}; "
            "run the same command to go on"
        )
    if not job.model.is_dir():
        raise StepError(f"{job.model}: the training worker saved no model; see the log")
    files.write(job.curve, "".join(point.line() for point in points))
    return points


def describe(job: Job) -> str:
    """The command that `train` would start here, as a line for a shell."""
    import torch

    words = command(
        job,
        base=job.base,
        processes=processes(job.params.num_procs, torch.cuda.device_count()),
        flash_attention=_has_flash_attention(torch.cuda.get_device_capability()),
    )
    note = "# the base model is handed over with the given chat template\n"
    return f"{note if job.chat_template else ''}{shlex.join(words)}\n"


def command(
    job: Job, *, base: Path, processes: int, flash_attention: bool, node: Node | None = None
) -> list[str]:
    """The argument list that starts torchrun with the library's worker.

    What to keep and when is in the job's file; every flag after that is one of
    `instructlab/training/main_ds.py`. Defaults that differ from ours are always given.
    """
    params = job.params
    words = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *_meeting(node or Node()),
        f"--nproc-per-node={processes}",
        *("--module", "steps.train.rank", str(job.file)),
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
        "--save_samples=0",  # the worker's own checkpoints stay off
        f"--seed={params.seed}",
        "--distributed_training_framework=fsdp",
        f"--fsdp_sharding_strategy={params.fsdp_sharding}",
    ]
    if not flash_attention:
        words.append("--disable_flash_attn")
    return words


def _meeting(node: Node) -> list[str]:
    """Where the processes of all nodes find one another."""
    if node.count == 1:
        return ["--standalone"]
    return [
        f"--nnodes={node.count}",
        f"--node-rank={node.rank}",
        "--rdzv-backend=static",
        f"--master-addr={node.address}",
        f"--master-port={node.port}",
        f"--rdzv-conf=timeout={_SECONDS_TO_MEET}",
    ]


def curve(job: Job) -> list[Point]:
    """The loss curve from the worker's metrics; steps that a later attempt took again count once."""
    path = job.checkpoints / METRICS
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as lines:
        return _points(job, lines)


def latest(job: Job) -> Point | None:
    """The last step of the curve, from the end of the file alone."""
    try:
        with (job.checkpoints / METRICS).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _BYTES_OF_LAST_LINES, 0))
            points = _points(job, file.read().decode("utf-8", "replace").splitlines())
    except FileNotFoundError:
        return None
    return points[-1] if points else None


def _points(job: Job, lines: Iterable[str]) -> list[Point]:
    points: list[Point] = []
    for line in lines:
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
        while points and points[-1].step >= step:
            points.pop()  # an attempt was killed after its last checkpoint
        seconds = found["batch_size"] / max(found["overall_throughput"], 1e-9)
        points.append(
            Point(
                step=step,
                epoch=round(samples / job.rows, 4),
                loss=found["avg_loss"],
                lr=found["lr"],
                tokens_per_second=round(found["num_tokens_rank0"] / max(seconds, 1e-9), 1),
            )
        )
    return points


def _run(words: list[str], job: Job, folder: Path, level: int = logging.DEBUG) -> None:
    tail: deque[str] = deque(maxlen=_LINES_SHOWN)
    # torchrun reads PET_* as flags, beside ours.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PET_")}
    # The interpreter's folder may not be on PATH; torchrun's own children look there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    stopped = False
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**environment, "PATH": path, rank.FOLDER: str(folder)},
        # A signal to this process's group is for this process, which has the state kept first.
        start_new_session=True,
        # A step that is killed must not leave processes on the GPUs.
        preexec_fn=partial(end_with_parent, os.getpid()),
    ) as worker:
        reader = threading.Thread(target=_forward, args=(worker, tail, level))
        reader.start()
        try:
            _follow(worker, job)
        except (KeyboardInterrupt, Terminated):
            stopped = True
            _stop(worker, folder)
            if not _has_ended(folder, job):
                raise
        finally:
            reader.join()
    if worker.returncode and not stopped:
        raise _error(worker.returncode, folder, list(tail))
    if not _ends(folder):
        raise StepError("\n  ".join(["the training worker ended without a word:", *tail]))
    if not _has_ended(folder, job):
        # Another node was asked to stop, and all have kept the state.
        raise Terminated


def _stop(worker: "subprocess.Popen[str]", folder: Path) -> None:
    """Have the processes keep their state and end; a second signal ends them at once.

    So does the first where there is no process yet, because other nodes are not there.
    """
    try:
        if not (folder / rank.BEGUN).exists():
            log.info("stopping: no process has begun")
            raise Terminated
        log.info("stopping: the state after this step is kept first")
        (folder / rank.STOP).touch()
        worker.wait(_SECONDS_TO_SAVE)
    except (KeyboardInterrupt, Terminated, subprocess.TimeoutExpired):
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()


def _ends(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("end-*.json"))]


def _has_ended(folder: Path, job: Job) -> bool:
    ends = _ends(folder)
    return bool(ends) and all(end.get("step") == job.steps for end in ends)


def _error(code: int, folder: Path, tail: list[str]) -> StepError:
    """What ended the worker: what the first process to fail has told, else its last lines."""
    last = "\n  ".join(["", *tail])
    failures = sorted((end for end in _ends(folder) if "code" in end), key=lambda end: end["time"])
    if failures:
        first = failures[0]
        kind = next(
            (
                kind
                for kind in (DataError, VolumeError, ConfigError)
                if kind.exit_code == first["code"]
            ),
            None,
        )
        if kind is not None:
            return kind(first["message"])
        return StepError(f"the training worker failed: {first['message']}{last}")
    text = "\n".join(tail)
    if _KILLED.search(text):
        return ConfigError(
            "a training process was killed, most likely for memory: raise --memory (each process "
            f"loads the whole model), or use fewer processes{last}"
        )
    if "collective operation timeout" in text:
        return StepError(
            "a process of the training has stopped answering; what became of the other nodes says "
            f"why, and INSTRUCTLAB_NCCL_TIMEOUT_MS how long is waited{last}"
        )
    return StepError(f"the training worker ended with {code}:{last}")


def _follow(worker: "subprocess.Popen[str]", job: Job) -> None:
    told = 0
    with progress("training", job.steps, "steps") as shown:
        while True:
            try:
                worker.wait(1.0)
                return
            except subprocess.TimeoutExpired:
                last = latest(job)
                if last and last.step != told:
                    told = last.step
                    shown.update(
                        last.step,
                        loss=f"{last.loss:.4f}",
                        tokens_per_second=f"{last.tokens_per_second:,.0f}",
                    )


def _forward(worker: "subprocess.Popen[str]", tail: deque[str], level: int) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip():
            tail.append(line.rstrip())
            log.log(level, "%s", line.rstrip())


def _with_template(job: Job, view: Path) -> Path:
    """The base model; under a given chat template a view of it, for the worker wants one there."""
    if job.chat_template is None:
        return job.base
    from transformers import AutoTokenizer

    view.mkdir(parents=True)
    for pattern in ("config.json", "generation_config.json", "*.safetensors*", "*.bin*"):
        for file in job.base.glob(pattern):
            (view / file.name).symlink_to(file.resolve())
    tokenizer: Any = AutoTokenizer.from_pretrained(job.base)
    tokenizer.chat_template = job.chat_template
    tokenizer.save_pretrained(view)
    return view


def processes(asked: str, gpus: int, *, by_runtime: str = "auto") -> int:
    """Training processes of a node, one a GPU. Raises ConfigError where it has not as many GPUs."""
    if "auto" not in (by_runtime, asked) and by_runtime != asked:
        raise ConfigError(
            f"--num-procs is {asked}, but PET_NPROC_PER_NODE {by_runtime}: let the runtime leave it "
            "to the job"
        )
    number = next((int(text) for text in (asked, by_runtime) if text != "auto"), gpus)
    if not 1 <= number <= gpus:
        raise ConfigError(
            f"{number} processes are asked for (--num-procs, PET_NPROC_PER_NODE), one a GPU, and "
            f"this machine shows {gpus} GPUs"
        )
    return number


def _has_flash_attention(capability: tuple[int, int]) -> bool:
    """Whether the worker would accept flash attention: Ampere to Hopper, and the package is there."""
    supported = capability[0] == 8 or capability == (9, 0)
    return supported and importlib.util.find_spec("flash_attn") is not None
