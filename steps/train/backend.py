"""What the ways to train share: what goes in and where, what comes out, the loss curve between."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steps import files
from steps.errors import ConfigError, DataError
from steps.params import may_hold_secret
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
    held_out: Path | None = None
    """`input_ids` and `labels` of the held-out rows."""

    @property
    def file(self) -> Path:
        """Where the job lies for the processes that work at it."""
        return self.checkpoints / "job.json"

    @property
    def model(self) -> Path:
        """Where the trained weights appear when training has ended."""
        return self.checkpoints / "model"

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps in one pass over the rows; the last may be smaller."""
        return -(-self.rows // self.params.train_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.steps_an_epoch * self.params.epochs

    def samples(self, step: int) -> int:
        """Rows trained on after so many steps, those of earlier epochs counted again."""
        epochs, rest = divmod(step, self.steps_an_epoch)
        return epochs * self.rows + min(rest * self.params.train_batch, self.rows)

    def write(self, path: Path) -> None:
        """Write the job as JSON, without any parameter that may hold a secret."""
        secret = {
            name for name, field in TrainParams.model_fields.items() if may_hold_secret(field)
        }
        params = self.params.model_dump(mode="json", exclude=secret)
        files.write(path, json.dumps({**asdict(self), "params": params}, default=str, indent=2))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """The job that was written to `path`; what is secret in it has its default."""
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
            found["params"] = TrainParams(**found["params"])
            for name in ("base", "tokens", "checkpoints", "curve", "held_out"):
                found[name] = found[name] and Path(found[name])
            return cls(**found)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: not there; mount the run's volume where the train step has it"
            ) from error
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise ConfigError(
                f"{path}: not a job of this version; let the train step write it anew ({error})"
            ) from error


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
    heldout: float | None = None
    """Loss per trained token of the held-out rows after this step, where it was computed."""

    def line(self) -> str:
        """The point as a line of the curve's file."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(told) + "\n"


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
