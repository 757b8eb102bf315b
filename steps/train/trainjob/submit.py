"""The TrainJob of a run: the one that is there already, or a new one."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from steps.errors import ConfigError, ExistsError, ForbiddenError, TransientError
from steps.train.trainjob import objects
from steps.train.trainjob.cluster import Cluster
from steps.train.trainjob.manifest import FINGERPRINT, SENT, Object
from steps.train.trainjob.patience import Pace, Patience
from steps.train.trainjob.state import ENDS, condition, is_over, phase

log = logging.getLogger(__name__)

_OWNERS = ("app.kubernetes.io/component", "app.kubernetes.io/instance")
"""Labels that another run's TrainJob has otherwise."""


def submit(
    cluster: Cluster, manifest: Mapping[str, Any], pace: Pace, note: Callable[[], None]
) -> Object:
    """The run's TrainJob: attached to where it runs or is complete, made anew where it failed.

    One that was asked for with other parameters is deleted first; one of another run is refused.
    `note` is called as soon as there may be one of this run.
    """
    sent = _digest(manifest)
    metadata = manifest["metadata"]
    marks = {**metadata.get("annotations", {}), SENT: sent}
    manifest = {**manifest, "metadata": {**metadata, "annotations": marks}}
    patience, name = Patience(pace), metadata["name"]
    while True:
        there, _ = patience.ask(lambda: objects.find(cluster, name), pace.submission)
        if there is None:
            _wait_until_gone(cluster, name, None, pace)
            note()  # an attempt that is killed as it sends one has told of it
            try:
                job = patience.ask(lambda: objects.create(cluster, manifest), pace.submission)
            except ExistsError:  # made meanwhile, or by a request whose answer was lost
                continue
            log.info("submitted %s", title(cluster, job))
            return job
        _refuse_of_another_run(cluster, there, manifest)
        note()
        unfit = _unfit(there, sent)
        if unfit is None:
            log.info("%s is there already: attached to it", title(cluster, there))
            return there
        log.warning("%s %s: deleted, to be made anew", title(cluster, there), unfit)
        remove(cluster, there, pace)


def remove(cluster: Cluster, job: Object, pace: Pace) -> None:
    """Delete the job, and wait until nothing of it is left (TransientError)."""
    metadata = job["metadata"]
    Patience(pace).ask(lambda: objects.delete(cluster, job), pace.submission)
    _wait_until_gone(cluster, metadata["name"], metadata["uid"], pace)


def remove_other(cluster: Cluster, name: str, fingerprint: str, pace: Pace) -> None:
    """Delete the TrainJob of that name where it makes another result, and wait as `remove` does.

    Its workers would go on to write among the checkpoints, at their end too; so would those of one
    that is gone already, which are waited for.
    """
    job, _ = Patience(pace).ask(lambda: objects.find(cluster, name), pace.submission)
    if job is None:
        _wait_until_gone(cluster, name, None, pace)
        return
    found = job["metadata"].get("annotations") or {}
    if found.get(FINGERPRINT, fingerprint) != fingerprint:
        log.warning(
            "%s was made for another result: deleted, with its checkpoints", title(cluster, job)
        )
        remove(cluster, job, pace)


def has_ended(cluster: Cluster, name: str) -> bool:
    """Whether no worker of the TrainJob of that name runs, nor will."""
    job, _ = objects.find(cluster, name)
    if job and not (job["metadata"].get("deletionTimestamp") or phase(job, None) in ENDS):
        return False
    return all(map(is_over, objects.pods_of(cluster, name)))


def title(cluster: Cluster, job: Object) -> str:
    """The job as messages name it."""
    return _title(cluster, job["metadata"]["name"])


def _title(cluster: Cluster, name: str) -> str:
    return f"TrainJob {cluster.namespace}/{name}"


def _wait_until_gone(cluster: Cluster, name: str, uid: str | None, pace: Pace) -> None:
    patience, begun, told = Patience(pace), time.monotonic(), False
    while left := patience.ask(lambda: _left(cluster, name, uid)):
        if not told:
            log.info("waiting for %s to end", ", ".join(left))
            told = True
        if time.monotonic() - begun > pace.deletion:
            raise TransientError(
                f"{_title(cluster, name)} was deleted and does not go: {', '.join(left)} still "
                "there; a node that is gone may hold it: kubectl delete pod --force"
            )
        time.sleep(min(pace.first_wait, pace.look))


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


def _left(cluster: Cluster, name: str, uid: str | None) -> list[str]:
    """What is still there of a deleted job, its pods included where they may be seen.

    One that was deleted with its owner is gone before its pods, which keep a last checkpoint.
    """
    there, _ = objects.find(cluster, name)
    if there and there["metadata"]["uid"] != uid:
        return []  # another attempt has made it anew
    left = [title(cluster, there)] if there else []
    try:
        left += [f"pod {pod['metadata']['name']}" for pod in objects.pods_of(cluster, name)]
    except ForbiddenError as error:
        log.debug("%s", error)
    return left
