"""One process of a training, on one GPU: instructlab-training's worker, with our checkpoints.

torchrun starts it, and what follows the job's file are flags of the library's worker::

    python -m torch.distributed.run ... --module steps.train.rank checkpoints/job.json --seed=42 ...

The library's own checkpoints lose training (0.16.2): a resume inside a later epoch skips steps
unseen, one that was asked for inside a step loses that step, a state that was cut off crashes the
next start, none is ever removed, and a worker that was preempted reports success. To have it leave
and start again for a checkpoint would also cost the loading of the model each time. So its loop runs
as it is, and calls us at two places of its own: where it looks for a state to go on from, and at the
hooks of its callbacks, here on the loop's thread and on every rank, between two steps.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import runpy
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import files
from steps.errors import ConfigError, DataError, StepError, volume_error
from steps.train import checkpoints
from steps.train.backend import Job

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LIBRARY = "instructlab.training.main_ds"
FOLDER = "SFT_NODE_FOLDER"
"""Environment variable: a folder of this node, in which its processes are asked to stop and tell how
they ended."""
BEGUN, STOP = "begun", "stop"
"""Files in that folder: a process is there; all shall stop."""


def main(job: Job, flags: list[str], folder: Path) -> None:
    """Train to the end, or until the file `stop` appears in the folder; then the state is kept."""
    import torch.distributed as dist
    from instructlab.training import async_logger, callbacks, sampler, utils

    training = _Training(job, folder / STOP)
    utils.load_latest_full_state = training.go_on
    callbacks.CallbackManager = lambda: training
    # Its lines are written by another thread, and the last would be lost when the process ends.
    async_logger.AsyncStructuredLogger.log_sync = _write_at_once
    sampler.batch_lengths_to_minibatches_padded = _alike_on_all_ranks(
        sampler.batch_lengths_to_minibatches_padded
    )
    sys.argv = [LIBRARY, *flags, f"--callbacks={callbacks.serialize_callbacks_for_cli([])}"]
    try:
        runpy.run_module(LIBRARY, run_name="__main__", alter_sys=True)
    except _Stopped:
        dist.destroy_process_group()
    _tell(folder, {"step": training.step})


class _Stopped(Exception):  # noqa: N818
    """The state is kept, and the loop is left."""


class _Training:
    """What the library's loop calls; in place of its CallbackManager, which calls from a thread."""

    def __init__(self, job: Job, stop: Path) -> None:
        from instructlab.training.callbacks import TrainingContext

        self.context = TrainingContext()
        self.step = 0
        self._job, self._stop = job, stop
        self._saved = time.monotonic()
        self._args: Any = None
        self._accelerator: Any = None

    def go_on(self, args: Namespace, accelerator: Any) -> None:
        """Take over the newest state, and have the loop begin after it."""
        self._args, self._accelerator = args, accelerator
        folder, self.step = self._newest()
        if folder is not None:
            accelerator.load_state(folder)
            log.info("going on after step %d", self.step)
        args.samples_seen = self._job.samples(self.step)
        # The loop counts steps from 1 again when it starts, so those to pass over are this epoch's.
        args.current_epoch, args.last_step = divmod(self.step, self._job.steps_an_epoch)

    def _newest(self) -> tuple[str | None, int]:
        """The state that rank 0 sees: on a shared volume others may not see the same yet."""
        import torch.distributed as dist

        found = checkpoints.newest(self._job.checkpoints, "GPU") if self._is_first else None
        told = [(str(found.folder), found.step) if found else (None, 0)]
        dist.broadcast_object_list(told)
        return told[0]

    def fire(self, hook: str, **_: object) -> None:
        """Called by the loop at each of its hooks."""
        if hook == "on_step_end":
            self._after_step()
        elif hook == "on_train_end":
            if self.step != self._job.steps:
                raise StepError(
                    f"the library's loop ended after step {self.step} of {self._job.steps}: rows "
                    f"would be skipped; remove {self._job.checkpoints} to begin anew"
                )
            self._save_model(self._job.model)

    def close(self) -> None:
        """Called by the loop at its end."""

    @property
    def _is_first(self) -> bool:
        import torch.distributed as dist

        return dist.get_rank() == 0

    def _after_step(self) -> None:
        self.step += 1
        self._check()
        stop, seconds = self._agreed()
        due = checkpoints.due(self._job, self.step, seconds=seconds)
        stop = stop and self.step < self._job.steps
        if due.state or stop:
            with files.writing(checkpoints.state(self._job.checkpoints, self.step)):
                self._save_state()
        for name in due.models:
            with files.writing(self._job.checkpoints / name):
                self._save_model(self._job.checkpoints / name)
        if stop:
            raise _Stopped

    def _check(self) -> None:
        loss = self.context.loss
        if loss is None or not math.isfinite(loss):
            raise diverged(self.step, loss)
        seen = (self.context.epoch, self.context.total_samples)
        due = ((self.step - 1) // self._job.steps_an_epoch, self._job.samples(self.step))
        if seen != due:
            raise StepError(
                f"step {self.step} ended in epoch {seen[0]} after {seen[1]:,} rows, not in epoch "
                f"{due[0]} after {due[1]:,}: rows would be skipped or repeated; "
                f"remove {self._job.checkpoints} to begin anew"
            )

    def _agreed(self) -> tuple[bool, float]:
        """Whether any process is to stop, and the seconds since the last state: for all the same."""
        import torch
        import torch.distributed as dist

        told = torch.tensor(
            [float(self._stop.exists()), time.monotonic() - self._saved],
            device=self._accelerator.device,
        )
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        stop, seconds = told.tolist()
        return stop > 0, seconds

    def _save_state(self) -> None:
        partial = self._begun()
        self._accelerator.save_state(partial)
        self._ended(lambda: checkpoints.keep(self._job.checkpoints, self.step, "GPU"))
        self._saved = time.monotonic()

    def _save_model(self, target: Path) -> None:
        from instructlab.training.utils import save_hf_format_accelerate

        partial = self._begun()
        model = self._accelerator.model
        told = vars(self._args) | {"output_dir": partial, "keep_last_checkpoint_only": True}
        with _saved_as(_dtype(self._job.base), self._accelerator.accelerator):
            save_hf_format_accelerate(
                Namespace(**told),
                model,
                model.tokenizer,
                self._accelerator,
                self._job.samples(self.step),
            )

        def publish() -> None:
            files.replace_folder(Path(partial, "hf_format", "last_epoch"), target)
            files.remove(Path(partial))

        self._ended(publish)

    def _begun(self) -> str:
        """An empty folder to save into, once no rank can be still at the one before."""
        import torch.distributed as dist

        if self._is_first:
            checkpoints.begin(self._job.checkpoints)
        dist.barrier()
        return str(checkpoints.partial(self._job.checkpoints))

    def _ended(self, publish: Callable[[], None]) -> None:
        """Have what was saved take its place when every rank has written its part."""
        import torch.distributed as dist

        dist.barrier()
        if self._is_first:
            publish()
        dist.barrier()


def diverged(step: int, loss: float | None) -> DataError:
    """The error of a training whose loss is no longer a number."""
    return DataError(
        f"training diverged at step {step}: the loss is {loss}; "
        "lower --learning-rate or raise --lr-warmup"
    )


def _dtype(base: Path) -> "torch.dtype":
    import torch
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(base), "dtype", None) or torch.float32


@contextlib.contextmanager
def _saved_as(dtype: "torch.dtype", accelerator: Any) -> Iterator[None]:
    """Have weights saved in the base model's precision: in training they are in fp32, twice as large."""
    state_of = accelerator.get_state_dict

    def cast(model: Any, unwrap: bool = True) -> dict[str, "torch.Tensor"]:
        once: dict[tuple[int, object], torch.Tensor] = {}  # tied weights stay one
        return {
            name: once.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
            for name, tensor in state_of(model, unwrap=unwrap).items()
        }

    accelerator.get_state_dict = cast
    try:
        yield
    finally:
        del accelerator.get_state_dict


def _alike_on_all_ranks(pack: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
    """The packing of a batch, with as many passes on every rank.

    Without flash attention the library gives one rank more passes than another; their collectives
    then meet those of the next step, or nobody, and the training hangs (0.16.2). An index of -1 is
    the library's own for a pass without rows.
    """

    def packed(lengths: list[int], tokens: int, ranks: int, rank: int) -> list[list[int]]:
        everyone = [pack(lengths, tokens, ranks, other) for other in range(ranks)]
        return everyone[rank] + [[-1]] * (max(map(len, everyone)) - len(everyone[rank]))

    return packed


def _write_at_once(logger: Any, data: dict[str, Any]) -> None:
    asyncio.run_coroutine_threadsafe(logger.log(data), logger.loop).result()


def _tell(folder: Path, end: dict[str, Any]) -> None:
    files.write(folder / f"end-{os.environ['LOCAL_RANK']}.json", json.dumps(end))


def _known(error: Exception) -> StepError | None:
    """What the user can do something about, of what the library and its libraries raise."""
    import torch

    if isinstance(error, StepError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return ConfigError(
            "the GPU's memory ran out: lower --tokens or --max-seq-len, or use more GPUs"
        )
    if "out of shared memory" in str(error) or "Bus error" in str(error):
        return ConfigError(
            "shared memory (/dev/shm) is full, where the rows are read ahead: give the pod a larger one"
        )
    return volume_error(error)


if __name__ == "__main__":
    scratch = Path(os.environ[FOLDER])
    (scratch / BEGUN).touch()
    try:
        main(Job.read(Path(sys.argv[1])), sys.argv[2:], scratch)
    except Exception as error:
        known = _known(error)
        told = str(known) if known else traceback.format_exception_only(error)[-1].strip()
        code = known.exit_code if known else StepError.exit_code
        _tell(scratch, {"code": code, "message": told, "time": time.time()})
        if known is None:
            raise
        sys.stderr.write(f"{told}\n")
        sys.exit(code)
