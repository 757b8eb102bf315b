"""What the ways to train share: what goes in and where, what comes out, the loss curve between."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from steps.errors import DataError
from steps.train.params import TrainParams


@dataclass(frozen=True)
class Job:
    """One training: the same for every backend."""

    params: TrainParams
    base: Path
    """Folder of the base model."""
    tokens: Path
    """`input_ids` and `labels` of the rows, one JSON object a line."""
    rows: int
    checkpoints: Path
    curve: Path
    chat_template: str | None = None
    """The template that was given in place of the tokenizer's."""

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps in one pass over the rows; the last may be smaller."""
        return -(-self.rows // self.params.train_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.steps_an_epoch * self.params.epochs


@dataclass(frozen=True)
class Place:
    """What a training runs on, as far as it is known before it begins."""

    pods: int
    processes: int
    """In a pod; one a GPU where there are GPUs."""
    has_gpus: bool
    gpu_memory: int | None
    """Bytes of the smallest GPU; None where only the cluster knows."""
    memory: int | None
    """Bytes of host memory of a pod."""
    shm: int | None
    """Bytes of a pod's `/dev/shm`."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.pods * self.processes


@dataclass(frozen=True)
class Point:
    """One optimizer step of the loss curve."""

    step: int
    epoch: float
    """Passes over the rows so far."""
    loss: float
    """Mean over the tokens of the step that count in the loss."""
    lr: float
    tokens_per_second: float
    """Tokens read a second, masked ones included."""


def metrics(points: Iterable[Point]) -> dict[str, float]:
    """First, last and lowest loss, and the rate over all steps but the first, which warms up."""
    curve = list(points)
    if not curve:
        raise DataError("training ended without a single step")
    rates = [point.tokens_per_second for point in curve[1:] or curve]
    return {
        "steps": curve[-1].step,
        "loss_first": curve[0].loss,
        "loss_last": curve[-1].loss,
        "loss_min": min(point.loss for point in curve),
        # Each step does about the same work, so its time is what is to be averaged.
        "tokens_per_second": round(len(rates) / sum(1 / max(rate, 1e-9) for rate in rates), 1),
    }
