"""What a TrainJob and its pods say of how far it is. Pure: objects in, words out.

Of conditions only Complete and Failed with status True are an end; Suspended stays there with status
False ever after, and there is none for a job that runs or waits (Kubeflow Trainer 2.1 to 2.3).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from steps.train.trainjob.manifest import NODE, Object
from steps.train.trainjob.objects import time_of

Phase = Literal["complete", "failed", "suspended", "starting", "running", "ending"]
ENDS = ("complete", "failed")


def phase(job: Object, pods: Iterable[Object] | None) -> Phase:
    """How far the job is; without `pods`, where these may not be read, as the job itself tells."""
    if condition(job, "Complete"):
        return "complete"
    if condition(job, "Failed"):
        return "failed"
    if job["spec"].get("suspend"):
        return "suspended"
    if pods is None:
        return "running" if any(each.get("ready") for each in _jobs(job)) else "starting"
    workers = list(pods)
    if any(map(is_running, workers)):
        return "running"
    return "ending" if workers and all(map(is_over, workers)) else "starting"


def condition(obj: Object, type_: str) -> Object | None:
    """The condition of that type, where it holds."""
    for each in (obj.get("status") or {}).get("conditions") or []:
        if each["type"] == type_ and each["status"] == "True":
            found: Object = each
            return found
    return None


def has_begun(job: Object) -> bool:
    """Whether the Trainer has made something of the job: it then has a status."""
    return bool(_jobs(job) or (job.get("status") or {}).get("conditions"))


def occupied_since(pods: Iterable[Object]) -> datetime | None:
    """When the first of the pods got a node, and with it its GPUs."""
    times = []
    for pod in pods:
        scheduled = condition(pod, "PodScheduled")
        if scheduled:
            times.append(time_of(scheduled["lastTransitionTime"]))
    return min(times, default=None)


def container(pod: Object) -> Object:
    """The status of the worker's container; empty where there is none yet."""
    for each in (pod.get("status") or {}).get("containerStatuses") or []:
        if each["name"] == NODE:
            found: Object = each
            return found
    return {}


def is_running(pod: Object) -> bool:
    """Whether the worker runs."""
    return "running" in (container(pod).get("state") or {})


def is_pending(pod: Object) -> bool:
    """Whether the pod waits for a node, or its container for what it needs."""
    return (pod.get("status") or {}).get("phase") == "Pending"


def is_over(pod: Object) -> bool:
    """Whether its container will not be started again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _jobs(job: Object) -> list[Object]:
    return (job.get("status") or {}).get("jobsStatus") or []
