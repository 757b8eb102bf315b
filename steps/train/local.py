"""Training on this machine or in this pod: which parameters it can serve, and on what it trains."""

import contextlib
import logging
import os
from pathlib import Path

from steps.entrypoint import Run
from steps.flags import flag
from steps.params import POD, in_pod, required_on_cluster_only
from steps.train.backend import Job, Place, Point
from steps.train.params import TrainParams
from steps.train.started import refuse_another

log = logging.getLogger(__name__)

# https://docs.kernel.org/admin-guide/cgroup-v2.html, and the first version's.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def refusals(params: TrainParams) -> list[str]:
    """What would have no effect here."""
    needed, served = (
        ("a TrainJob (launcher: trainjob in sft.yaml)", POD) if in_pod() else ("a cluster", ())
    )
    refused = [
        f"{flag(name)} needs {needed}: leave it at its default here"
        for name in required_on_cluster_only(params, served)
    ]
    return refused if has_gpu() else refused + _on_cpu(params)


def check(params: TrainParams, run: Run) -> None:  # noqa: ARG001
    """Raise ConfigError where a TrainJob may be at work in the run's folder."""
    refuse_another(run.workspace)


def end_other(params: TrainParams, run: Run) -> None:
    """Nothing: what was started here has ended with its step."""


def train(job: Job, run: Run) -> list[Point]:  # noqa: ARG001
    """Train on the GPUs of this machine, or on its CPU where it has none."""
    if has_gpu():
        from steps.train import instructlab

        return instructlab.train(job)
    from steps.train import cpu

    return cpu.train(job)


def place(params: TrainParams) -> Place:
    """This machine or pod, with what it lets a training use."""
    memory, shm = _memory(), _size(Path("/dev/shm"))  # noqa: S108  # no file is made there
    if not has_gpu():
        return Place(1, 1, has_gpus=False, gpu_memory=None, memory=memory, shm=shm)
    import torch

    from steps.train import instructlab

    gpus = torch.cuda.device_count()
    return Place(
        pods=1,
        processes=instructlab.processes(params.num_procs, gpus),
        has_gpus=True,
        gpu_memory=min(torch.cuda.get_device_properties(n).total_memory for n in range(gpus)),
        memory=memory,
        shm=shm,
    )


def describe(job: Job, run: Run) -> str:
    """The command that is started on GPUs; a CPU trains in the step's own process."""
    refuse_another(run.workspace)
    if has_gpu():
        from steps.train import instructlab

        return instructlab.describe(job)
    return "# no GPU: the step trains on the CPU in its own process, and starts no command\n"


def has_gpu() -> bool:
    """Whether this process sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def _memory() -> int:
    """Bytes that this process's container may use, or the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            return min(int(file.read_text()), machine)
    return machine


def _size(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


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
