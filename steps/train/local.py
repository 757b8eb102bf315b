"""What this machine, or this pod, can serve of a training's parameters, and what only a cluster can."""

import logging
import re

from steps.errors import UsageError
from steps.flags import flag
from steps.params import required_on_cluster_only
from steps.train.params import TrainParams

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z_][\w.-]*=")
_NEXT_PAIR = re.compile(rf"[,\s]*,\s*(?={_NAME.pattern})")
_POLYNOMIAL_END = 1e-7
"""Where transformers' polynomial schedule ends; it starts above."""


def refuse_what_it_cannot_serve(params: TrainParams) -> None:
    """Raise UsageError naming every parameter that would have no effect here."""
    refused = [
        f"{flag(name)} needs a cluster: leave it at its default here"
        for name in required_on_cluster_only(params)
    ]
    refused += _of_the_scheduler(params)
    if params.launcher == "trainjob":
        refused.append("--launcher trainjob is not there yet: use local")
    refused += _on_gpus(params) if has_gpu() else _on_cpu(params)
    refused += environment(params.env_vars)[1]
    if refused:
        raise UsageError("\n  ".join(refused))


def has_gpu() -> bool:
    """Whether this process sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def environment(text: str) -> tuple[dict[str, str], list[str]]:
    """`K=V,K=V` as variables, and what is wrong with it.

    A comma begins the next pair only where a name and `=` follow: `NCCL_SOCKET_IFNAME=eth0,eth1` is
    one variable. What is wrong is told without the values, which may be secrets.
    """
    pairs = [pair for pair in _NEXT_PAIR.split(text.strip(", \n")) if pair]
    if pairs and not _NAME.match(pairs[0]):
        return {}, ["--env-vars: it does not begin with a name and '='; write K=V,K=V"]
    return {name: value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}, []


def _of_the_scheduler(params: TrainParams) -> list[str]:
    refused = []
    if params.lr_warmup and params.lr_scheduler == "constant":
        refused.append(
            "--lr-warmup has no effect with --lr-scheduler constant: take constant_with_warmup"
        )
    if params.lr_scheduler == "polynomial" and params.learning_rate <= _POLYNOMIAL_END:
        refused.append(
            f"--lr-scheduler polynomial goes down to {_POLYNOMIAL_END}: give a higher --learning-rate"
        )
    return refused


def _on_gpus(params: TrainParams) -> list[str]:
    default = type(params).model_fields["checkpoint_minutes"].default
    if params.checkpoint_minutes in (0, default):
        return []
    return [
        "--checkpoint-minutes has no effect on GPUs: the full state is kept at the end of each "
        "epoch; leave it out"
    ]


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
