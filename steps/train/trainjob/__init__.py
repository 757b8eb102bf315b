"""Training on a cluster: a TrainJob of Kubeflow Trainer, submitted and followed to its end."""

from steps.entrypoint import Run
from steps.train.backend import Job, Point
from steps.train.params import TrainParams
from steps.train.trainjob.plan import describe, place

__all__ = ["describe", "place", "refusals", "train"]


def refusals(params: TrainParams) -> list[str]:  # noqa: ARG001
    """What is wrong with the parameters of a TrainJob."""
    return ["--launcher trainjob is not there yet: use local"]


def train(job: Job, run: Run) -> list[Point]:
    """Run the training as a TrainJob."""
    raise NotImplementedError
