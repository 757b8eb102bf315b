"""What keeps a TrainJob from starting, in the words of those who keep it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from steps.train.trainjob import objects
from steps.train.trainjob.cluster import Cluster
from steps.train.trainjob.manifest import NODE, QUEUE, Object
from steps.train.trainjob.state import condition, is_pending

CREATION_FAILED = "TrainJobResourcesCreationFailed"

_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")
# The pod's condition and its container's state say the same, and say when it is over.
_TOLD_BY_THE_POD = ("FailedScheduling", "BackOff")
_PODS_ASKED = 3  # the others wait for the same


@dataclass(frozen=True)
class Obstacle:
    """One thing in the way."""

    what: str
    reason: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.what, self.reason, self.message) if part)

    @property
    def key(self) -> str:
        """The same for the same thing told with other counts."""
        return re.sub(r"\d+", "#", str(self))


NOTHING_MADE = Obstacle(
    "nothing has been made of it yet", "", "does the controller of Kubeflow Trainer run?"
)


def of_pods(pods: Iterable[Object]) -> Iterator[Obstacle]:
    """Pods that find no node, and containers that cannot start."""
    for pod in pods:
        what, status = f"pod {_stem(pod['metadata']['name'])}", pod.get("status") or {}
        for each in status.get("conditions") or []:
            if each["type"] == "PodScheduled" and each["status"] == "False":
                yield Obstacle(what, each.get("reason", ""), each.get("message", ""))
        containers = (status.get("initContainerStatuses") or []) + (
            status.get("containerStatuses") or []
        )
        for each in containers:
            waiting = (each.get("state") or {}).get("waiting") or {}
            if waiting.get("reason", _ON_ITS_WAY[0]) not in _ON_ITS_WAY:
                yield Obstacle(what, waiting["reason"], waiting.get("message", ""))


def of_events(cluster: Cluster, job: Object, pods: Iterable[Object]) -> Iterator[Obstacle]:
    """Warnings about the TrainJob, its JobSet of the same name, its Job, and pods that wait."""
    name = job["metadata"]["name"]
    waiting = list(filter(is_pending, pods))
    asked = [pod["metadata"]["name"] for pod in waiting[:_PODS_ASKED]]
    for about in (name, f"{name}-{NODE}-0", *asked):
        for event in objects.events(cluster, job, about):
            if event.get("reason") not in _TOLD_BY_THE_POD:
                kind = event["involvedObject"].get("kind", "")
                message = _stem(" ".join((event.get("message") or "").split()))
                yield Obstacle(f"{kind} {_stem(about)}", event.get("reason", ""), message)


def of_queue(cluster: Cluster, job: Object) -> Obstacle:
    """Why a suspended job is so."""
    queue = (job["metadata"].get("labels") or {}).get(QUEUE)
    workload = objects.workload(cluster, job)
    if workload is None and queue is None:
        return Obstacle(
            "suspended",
            "",
            "not by Kueue, which has no queue for it; who did it must set spec.suspend to false",
        )
    what = f"waits in the queue {queue or (workload or {}).get('spec', {}).get('queueName', '')}"
    if workload is None:
        return Obstacle(what, "", "")
    if condition(workload, "Admitted"):
        return Obstacle(
            what, "", "Kueue has admitted it, and the TrainJob is still suspended: see Kueue's log"
        )
    told = [
        each
        for each in (workload.get("status") or {}).get("conditions") or []
        if each["type"] in ("QuotaReserved", "Evicted", "Admitted") and each.get("message")
    ]
    first = next((each for each in told if each["type"] == "QuotaReserved"), None)
    each = first or (told[0] if told else {})
    return Obstacle(what, each.get("reason", ""), each.get("message", ""))


def _stem(text: str) -> str:
    """Names of pods without their random ends: a new try has another one."""
    return re.sub(rf"(-{NODE}-\d+-\d+)-[a-z0-9]{{5}}\b", r"\1", text)
