"""What cannot be served by a TrainJob, told before anything is sent, each with the parameter to change."""

import logging
import os
import re
from collections.abc import Iterator

from steps.errors import UsageError
from steps.quantities import amount
from steps.train.params import LABEL_KEY, LABEL_VALUE, TRAIN_ENV, TRAIN_ENV_PREFIX, TrainParams
from steps.train.trainjob.manifest import QUEUE, RESERVED, pairs, processes
from steps.train.variables import environment

log = logging.getLogger(__name__)

_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_OTHERS = ("batch.kubernetes.io/", "jobset.sigs.k8s.io/", "trainer.kubeflow.org/")
_OURS = tuple(f"app.kubernetes.io/{key}" for key in ("part-of", "component", "instance"))
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|(API|ACCESS|SECRET)_?KEY)$")


def refusals(params: TrainParams) -> list[str]:
    """What is wrong with the parameters of a TrainJob."""
    return [
        *_of_resources(params),
        *_of_marks("--labels", params.labels, are_labels=True),
        *_of_marks("--annotations", params.annotations, are_labels=False),
        *_of_marks("--node-selector", params.node_selector, are_labels=True),
        *_of_environment(params),
        *(
            [f"--runtime {params.runtime!r}: not the name of an object"]
            if not _OBJECT.fullmatch(params.runtime)
            else []
        ),
    ]


def tell(params: TrainParams) -> None:
    """Warn of what works, but perhaps not as it was meant."""
    for note in notes(params):
        log.warning("%s", note)


def notes(params: TrainParams) -> list[str]:
    """What works, but perhaps not as it was meant."""
    found = []
    gpus = params.workers * processes(params)
    if params.fsdp_sharding == "NO_SHARD" and gpus > 1:
        found.append("--fsdp-sharding NO_SHARD: every GPU holds the whole model and its optimizer")
    if params.fsdp_sharding == "HYBRID_SHARD" and params.workers > 1 and processes(params) == 1:
        found.append(
            "--fsdp-sharding HYBRID_SHARD shards within a worker, and each has one process: every "
            "GPU holds the whole model and its optimizer; FULL_SHARD would divide them"
        )
    if processes(params) < params.gpu:
        found.append(
            f"--num-procs {params.num_procs} leaves {params.gpu - processes(params)} of a worker's "
            "GPUs idle"
        )
    return found


def _of_resources(params: TrainParams) -> Iterator[str]:
    if params.gpu == 0:
        yield "--gpu 0: a TrainJob's workers train on GPUs: take 1 or more, or --launcher local"
    elif processes(params) > params.gpu:
        yield f"--num-procs {params.num_procs}: more processes than GPUs (--gpu {params.gpu})"
    for flag, quantity in (
        ("--cpu", params.cpu),
        ("--memory", params.memory),
        ("--shm-size", params.shm_size),
    ):
        if not amount(quantity):
            yield f"{flag} {quantity}: must be more than 0"
        elif flag != "--cpu" and quantity.endswith("m"):
            yield f"{flag} {quantity}: m is a thousandth of a byte; write M, Mi or Gi"
    if 0 < amount(params.memory) <= amount(params.shm_size):
        yield (
            f"--shm-size {params.shm_size}: counts as memory, of which a worker has "
            f"--memory {params.memory} in all"
        )


def _of_marks(flag: str, text: str, *, are_labels: bool) -> Iterator[str]:
    try:
        found = pairs(text)
    except UsageError as error:
        yield f"{flag}: {error}; write k=v,k=v"
        return
    for key, value in found.items():
        if not re.fullmatch(LABEL_KEY, key):
            yield f"{flag}: {key!r} is no key: letters, digits, '-', '_' and '.', with a prefix/ or not"
        elif are_labels and not re.fullmatch(LABEL_VALUE, value):
            yield f"{flag} {key}: {value!r} is no label's value: 63 letters, digits, '-', '_' and '.'"
        elif flag == "--labels" and key == QUEUE:
            yield f"{flag} {key}: would make each pod wait in the queue: use --queue {value}"
        elif flag != "--node-selector" and (key.startswith(_OTHERS) or key in _OURS):
            yield f"{flag} {key}: is set by what makes the pods: take another key"


def _of_environment(params: TrainParams) -> Iterator[str]:
    for variable in environment(params.env_vars)[0]:
        if variable.startswith(RESERVED):
            yield f"--env-vars {variable}: names that begin with {' or '.join(RESERVED)} are taken"
        elif _SECRET.search(variable):
            yield (
                f"--env-vars {variable}: would stand in the TrainJob for all to read: put it into "
                f"the secret {TRAIN_ENV.name!r}, whose keys the workers get"
            )
        elif not variable.isascii():
            yield f"--env-vars {variable}: letters, digits, '-', '_' and '.' make a name"
    for variable in os.environ:
        key = variable.removeprefix(TRAIN_ENV_PREFIX)
        if key != variable and key.startswith(RESERVED):
            yield f"secret {TRAIN_ENV.name!r}, key {key}: names that begin with {' or '.join(RESERVED)} are taken"
