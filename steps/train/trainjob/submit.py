"""The TrainJob of a run: the one that is there already, or a new one."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from steps.errors import ConfigError, TransientError
from steps.train.trainjob import objects
from steps.train.trainjob.cluster import Cluster, ExistsError, ForbiddenError
from steps.train.trainjob.objects import Object
from steps.train.trainjob.patience import Pace, Patience
from steps.train.trainjob.state import condition

log = logging.getLogger(__name__)

SENT = "sft.sent"
"""Annotation: a digest of what was asked for, which those who queue a job change in the job."""

_OWNERS = ("app.kubernetes.io/component", "app.kubernetes.io/instance")
"""Labels that another run's TrainJob has otherwise."""


def submit(cluster: Cluster, manifest: Mapping[str, Any], pace: Pace) -> Object:
    """The run's TrainJob: attached to where it runs or is complete, made anew where it failed.

    One that was asked for with other parameters is deleted first; one of another run is refused.
    """
    sent = _digest(manifest)
    metadata = manifest["metadata"]
    marks = {**metadata.get("annotations", {}), SENT: sent}
    manifest = {**manifest, "metadata": {**metadata, "annotations": marks}}
    patience, name = Patience(pace), metadata["name"]
    while True:
        there, _ = patience.ask(lambda: objects.find(cluster, name), pace.submission)
        if there is None:
            try:
                job = patience.ask(lambda: objects.create(cluster, manifest), pace.submission)
            except ExistsError:  # made meanwhile, or by a request whose answer was lost
                continue
            log.info("submitted %s", title(cluster, job))
            return job
        _refuse_of_another_run(cluster, there, manifest)
        unfit = _unfit(there, sent)
        if unfit is None:
            log.info("%s is there already: attached to it", title(cluster, there))
            return there
        log.warning("%s %s: deleted, to be made anew", title(cluster, there), unfit)
        remove(cluster, there, pace)


def remove(cluster: Cluster, job: Object, pace: Pace) -> None:
    """Delete the job, and wait until nothing of it is left (TransientError)."""
    patience = Patience(pace)
    patience.ask(lambda: objects.delete(cluster, job), pace.submission)
    begun = time.monotonic()
    while left := patience.ask(lambda: _left(cluster, job)):
        if time.monotonic() - begun > pace.deletion:
            raise TransientError(
                f"{title(cluster, job)} was deleted and does not go: {', '.join(left)} still there; "
                "a node that is gone may hold it: kubectl delete pod --force"
            )
        time.sleep(min(pace.first_wait, pace.look))


def title(cluster: Cluster, job: Object) -> str:
    """The job as messages name it."""
    return f"TrainJob {cluster.namespace}/{job['metadata']['name']}"


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of what comes out (the annotations have the result's fingerprint) and how it is run."""
    parts = [manifest["metadata"].get("annotations"), manifest["spec"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _unfit(job: Object, sent: str) -> str | None:
    """Why the job cannot be attached to."""
    if job["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    failed = condition(job, "Failed")
    if failed:
        return f"failed before ({failed.get('reason')}: {failed.get('message')})"
    if (job["metadata"].get("annotations") or {}).get(SENT) != sent:
        return "was made for other parameters"
    return None


def _refuse_of_another_run(cluster: Cluster, job: Object, manifest: Mapping[str, Any]) -> None:
    wanted, found = manifest["metadata"].get("labels", {}), job["metadata"].get("labels") or {}
    other = [f"{key}={found.get(key)}" for key in _OWNERS if found.get(key) != wanted.get(key)]
    if other:
        raise ConfigError(
            f"{title(cluster, job)} is there and belongs to another run ({', '.join(other)}): "
            "give this run another name, or delete the TrainJob if nobody needs it"
        )


def _left(cluster: Cluster, job: Object) -> list[str]:
    """What is still there of a deleted job, its pods included where they may be seen."""
    uid = job["metadata"]["uid"]
    there, _ = objects.find(cluster, job["metadata"]["name"])
    left = [title(cluster, job)] if there and there["metadata"]["uid"] == uid else []
    try:
        left += [f"pod {pod['metadata']['name']}" for pod in objects.pods(cluster, job)]
    except ForbiddenError as error:
        log.debug("%s", error)
    return left
