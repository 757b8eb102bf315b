"""What a TrainJob will be, told before it is sent."""

from steps import quantities
from steps.entrypoint import Run
from steps.train.backend import Job, Place
from steps.train.params import TrainParams


def place(params: TrainParams) -> Place:
    """The pods that are asked for; their GPUs' memory is the cluster's to know."""
    processes = params.gpu if params.num_procs == "auto" else int(params.num_procs)
    return Place(
        pods=params.workers,
        processes=max(processes, 1),
        has_gpus=params.gpu > 0,
        gpu_memory=None,
        memory=quantities.in_units(params.memory),
        shm=None,
    )


def describe(job: Job, run: Run) -> str:
    """The TrainJob as YAML."""
    raise NotImplementedError
