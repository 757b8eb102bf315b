"""Why a TrainJob failed, from what its pods were seen to end with: the error as if it had run here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from steps.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    StepError,
    TransientError,
    UsageError,
    VolumeError,
)
from steps.train.trainjob.manifest import Object
from steps.train.trainjob.objects import rank, time_of
from steps.train.trainjob.state import condition, container

_BY_EXIT_CODE: dict[int, type[StepError]] = {
    error.exit_code: error
    for error in (
        UsageError,
        DataError,
        VolumeError,
        TransientError,
        CredentialsError,
        ConfigError,
    )
}
_OUT_OF_MEMORY = "OOMKilled"
_KILLED = (130, 137, 143)
# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/: the node, not the worker, ended it.
_LOST = (
    "Evicted",
    "NodeLost",
    "NodeShutdown",
    "Preempting",
    "Terminated",
    "UnexpectedAdmissionError",
)
_TOGETHER = timedelta(minutes=20)
"""Between an end and those it brings with it: nodes that wait for the one that is gone give up after
the 10 minutes of INSTRUCTLAB_NCCL_TIMEOUT_MS, and take some to end."""


@dataclass(frozen=True)
class Stop:
    """The end of a worker's container, or of its whole pod."""

    pod: str
    node: int
    at: datetime
    exit_code: int
    reason: str
    message: str
    lost: bool = False
    """Whether the pod was taken away: evicted, preempted, gone with its node."""

    def __str__(self) -> str:
        told = f": {self.message}" if self.message else ""
        reason = f" ({self.reason})" if self.reason not in ("", "Error", "Completed") else ""
        how = "was lost" if self.lost else f"ended with exit code {self.exit_code}"
        return f"node {self.node} (pod {self.pod}) {how}{reason}{told}"


def stops(pod: Object) -> Iterable[Stop]:
    """The ends other than a good one that the pod tells: its last, and the one before a restart."""
    status = pod.get("status") or {}
    disruption = condition(pod, "DisruptionTarget")
    reason = (disruption or {}).get("reason") or status.get("reason") or ""
    name, node = pod["metadata"]["name"], rank(pod)
    if disruption or (status.get("phase") == "Failed" and reason in _LOST):
        at = (disruption or {}).get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
        message = (disruption or {}).get("message") or status.get("message") or ""
        yield Stop(name, node, time_of(at), 137, reason, _line(message), lost=True)
        return
    for state in ("state", "lastState"):
        ended = (container(pod).get(state) or {}).get("terminated")
        if ended and ended["exitCode"]:
            at = ended.get("finishedAt") or pod["metadata"]["creationTimestamp"]
            told = ended.get("reason") or ""
            message = _line(ended.get("message") or "")
            yield Stop(name, node, time_of(at), ended["exitCode"], told, message)


def cause(seen: Iterable[Stop]) -> Stop | None:
    """The end that brought the others with it: the first of those that came together last."""
    every = sorted(seen, key=lambda stop: (stop.at, _weight(stop), stop.node))
    return next((stop for stop in every if every[-1].at - stop.at <= _TOGETHER), None)


def error(
    job: Object, where: str, memory: str, stop: Stop | None, tail: Callable[[Stop], list[str]]
) -> StepError:
    """The error to end with; `tail` gives the last lines of the worker that failed."""
    failed = condition(job, "Failed") or {}
    text = f"{where} failed: {failed.get('reason', '')}: {failed.get('message', '')}"
    if failed.get("reason") == "DeadlineExceeded":
        return ConfigError(f"{text}: raise the deadline, then run the same command to go on")
    if failed.get("reason") == "TrainingRuntimeNotSupported":
        return ConfigError(
            f"{text}: the Trainer there does not know this kind of runtime: choose another --runtime"
        )
    if stop is None:
        return StepError(
            f"{text}; its pods are gone or may not be read: kubectl describe trainjob, jobset and "
            "pods there tell more"
        )
    lines = "".join(f"\n  {line}" for line in tail(stop))
    if stop.reason == _OUT_OF_MEMORY:
        return ConfigError(
            f"{text}\n{stop}: the memory of {memory} was not enough: raise --memory{lines}"
        )
    if stop.lost or stop.exit_code in _KILLED:
        return TransientError(
            f"{text}\n{stop}: the next attempt goes on from the last checkpoint{lines}"
        )
    return _BY_EXIT_CODE.get(stop.exit_code, StepError)(f"{text}\n{stop}{lines}")


def _weight(stop: Stop) -> int:
    """Of ends in the same second: what explains the others before what they may be explained by."""
    if stop.lost or stop.reason == _OUT_OF_MEMORY:
        return 0
    return 2 if stop.exit_code in (1, *_KILLED) else 1


def _line(text: str) -> str:
    return " ".join(text.split())
