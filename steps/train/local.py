"""Training on this machine or in this pod: which parameters it can serve, and on what it trains."""

import logging

from steps.entrypoint import Run
from steps.flags import flag
from steps.params import required_on_cluster_only
from steps.train.backend import Job, Point
from steps.train.params import TrainParams

log = logging.getLogger(__name__)


def refusals(params: TrainParams) -> list[str]:
    """What would have no effect here."""
    refused = [
        f"{flag(name)} needs a cluster: leave it at its default here"
        for name in required_on_cluster_only(params)
    ]
    return refused if has_gpu() else refused + _on_cpu(params)


def train(job: Job, run: Run) -> list[Point]:  # noqa: ARG001
    """Train on the GPUs of this machine, or on its CPU where it has none."""
    if has_gpu():
        from steps.train import instructlab

        return instructlab.train(job)
    from steps.train import cpu

    return cpu.train(job)


def has_gpu() -> bool:
    """Whether this process sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def _on_cpu(params: TrainParams) -> list[str]:
    default = type(params).model_fields
    refused = []
    if params.use_liger:
        refused.append("--use-liger needs a GPU: its kernels are written for one")
    if params.fsdp_sharding != default["fsdp_sharding"].default:
        refused.append("--fsdp-sharding needs GPUs: there is nothing to shard over here")
    if params.num_procs not in ("auto", "1"):
        refused.append("--num-procs needs GPUs: one process uses all cores here")
    return refused
