"""Where a training runs: here, or on a cluster as a TrainJob."""

from typing import Protocol

from steps import secrets
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.params import in_pod
from steps.train.backend import Job, Place, Point
from steps.train.params import KUBERNETES_CREDENTIALS, TrainParams
from steps.train.variables import environment

_POLYNOMIAL_END = 1e-7
"""Where transformers' polynomial schedule ends; it starts above."""


class Launcher(Protocol):
    """A way to run a training; the modules `local` and `trainjob` are one each."""

    def refusals(self, params: TrainParams) -> list[str]:
        """What is wrong with the parameters for this way to train, or would have no effect."""

    def check(self, params: TrainParams, run: Run) -> None:
        """Raise a StepError where what it needs beside the parameters is not there; in seconds."""

    def place(self, params: TrainParams) -> Place:
        """What it trains on."""

    def describe(self, job: Job, run: Run) -> str:
        """What `train` would start or send, to be read by people and pasted."""

    def end_other(self, params: TrainParams, run: Run) -> None:
        """End what an attempt at another result may have left at work in the run's folder."""

    def train(self, job: Job, run: Run) -> list[Point]:
        """Leave the model in `checkpoints/model`, going on from what an attempt before has left."""


def choose(params: TrainParams) -> Launcher:
    """The launcher that the parameters name, or that fits where this process runs."""
    from steps.train import local, trainjob

    named = params.launcher
    if named == "auto":
        named = "trainjob" if _has_cluster() else "local"
    return {"local": local, "trainjob": trainjob}[named]


def refuse_what_it_cannot_serve(params: TrainParams) -> None:
    """Raise UsageError naming every parameter that is wrong or would have no effect."""
    refused = choose(params).refusals(params) + mistakes(params)
    if refused:
        raise UsageError("\n  ".join(refused))


def _has_cluster() -> bool:
    # One key without the other is a mistake, and told as such by who connects.
    return in_pod() or any(secrets.environment(key) for key in KUBERNETES_CREDENTIALS.keys)


def mistakes(params: TrainParams) -> list[str]:
    """What is wrong with the parameters wherever the training runs."""
    refused = environment(params.env_vars)[1]
    if params.lr_warmup and params.lr_scheduler == "constant":
        refused.append(
            "--lr-warmup has no effect with --lr-scheduler constant: take constant_with_warmup"
        )
    if params.lr_scheduler == "polynomial" and params.learning_rate <= _POLYNOMIAL_END:
        refused.append(
            f"--lr-scheduler polynomial goes down to {_POLYNOMIAL_END}: give a higher --learning-rate"
        )
    return refused
