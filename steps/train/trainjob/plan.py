"""What a TrainJob will be, told before it is sent."""

import json
from functools import partial

from steps import quantities
from steps.entrypoint import Run
from steps.errors import ConfigError
from steps.train.backend import Job, Place
from steps.train.params import TrainParams
from steps.train.started import refuse_another
from steps.train.trainjob import limits, manifest
from steps.train.trainjob.manifest import FINGERPRINT, SENT, Runtime

# The fingerprint takes the fetched base model, the owner the step's own pod.
_ADDED = f"""\
# Added when it is sent: annotations {FINGERPRINT} (of the result) and {SENT} (of all of this), and
# the owner, which is the workflow.
"""


def place(params: TrainParams) -> Place:
    """The pods that are asked for; their GPUs' memory is the cluster's to know."""
    return Place(
        pods=params.workers,
        processes=max(manifest.processes(params), 1),
        has_gpus=params.gpu > 0,
        gpu_memory=None,
        memory=int(quantities.amount(params.memory)),
        shm=int(quantities.amount(params.shm_size)),
    )


def describe(job: Job, run: Run) -> str:
    """The TrainJob as YAML; no cluster is asked where `trainer_api` names its shape."""
    import yaml

    params = job.params
    limits.tell(params)
    if params.trainer_api == "auto":
        from steps.train.trainjob import cluster, runtimes

        try:
            connected = cluster.connect(params, run.bound.namespace)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; without a cluster, --trainer-api v2.2 (or v2.1) prints the TrainJob"
            ) from error
        refuse_another(run.workspace, own=(connected.namespace, manifest.name(run)))
        runtime = runtimes.find(connected, params)
        api = runtimes.shape(connected, params, partial(manifest.render, job, run, runtime=runtime))
    else:
        runtime, api = Runtime(name=params.runtime), params.trainer_api
    # Without the aliases that YAML has for what stands in several places.
    sent = json.loads(json.dumps(manifest.render(job, run, api, runtime)))
    return _ADDED + yaml.safe_dump(sent, sort_keys=False)
