"""A TrainJob followed to its end, for as long as it takes."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from steps.errors import (
    ConfigError,
    ForbiddenError,
    StepError,
    TransientError,
)
from steps.quantities import duration
from steps.train.trainjob import failure, objects, obstacles, state
from steps.train.trainjob.cluster import Cluster
from steps.train.trainjob.failure import Stop
from steps.train.trainjob.manifest import Object
from steps.train.trainjob.obstacles import Obstacle
from steps.train.trainjob.patience import Pace, Patience, retry_after
from steps.train.trainjob.submit import submit, title
from steps.train.trainjob.worker_log import WorkerLog

log = logging.getLogger(__name__)

T = TypeVar("T")

_LINES_SHOWN = 20


@dataclass(frozen=True)
class Limits:
    """What the job may use; named where it was not enough."""

    memory: str
    """Of a worker."""
    running: float | None = None
    """Seconds that its pods may have nodes; waiting for them does not count."""


def run(
    cluster: Cluster,
    manifest: Mapping[str, Any],
    *,
    limits: Limits,
    bookmark: Path,
    note: Callable[[], None],
    show: Callable[[], None],
    pace: Pace | None = None,
) -> Object:
    """The run's TrainJob when it is complete: submitted or attached to, its log told meanwhile.

    `note` is called as soon as there may be one, `show` now and then while it runs. Raises the worker's own error where it failed.
    Whoever is stopped, or loses the right to look, leaves the job to the next attempt.
    """
    pace = pace or Pace()
    job = submit(cluster, manifest, pace, note)
    following = _Following(cluster, job, limits, bookmark, show, pace)
    try:
        return following.to_the_end()
    except BaseException as error:
        if following.is_over:
            raise
        if isinstance(error, StepError):
            raise type(error)(f"{error}; {following.left}") from error
        log.warning("%s", following.left)
        raise
    finally:
        following.log.stop()


@dataclass
class _Following:
    cluster: Cluster
    job: Object
    limits: Limits
    bookmark: Path
    show: Callable[[], None]
    pace: Pace
    _patience: Patience = field(init=False)
    log: WorkerLog = field(init=False)
    _phase: str = ""
    _told: set[str] = field(default_factory=set)
    _denied: set[str] = field(default_factory=set)
    _stops: set[Stop] = field(default_factory=set)
    _spent: timedelta = timedelta(0)
    """Running time before the pods of now: a queue may take them away and give others."""
    _since: datetime | None = None
    _begun: float = field(default_factory=time.monotonic)
    _failing_since: float | None = None
    is_over: bool = False
    """Whether the job has ended, or was made to."""

    def __post_init__(self) -> None:
        self._patience = Patience(self.pace)
        self.log = WorkerLog(self.cluster, self.job, self.bookmark, self.pace)

    @property
    def left(self) -> str:
        """What is told when the job is left alone."""
        return f"{self._title} goes on without this step; the next attempt attaches to it"

    def to_the_end(self) -> Object:
        """The complete job; else an error that says how it ended."""
        while True:
            job, version = self._patience.ask(
                lambda: objects.find(self.cluster, self.job["metadata"]["name"])
            )
            self._refuse_deleted(job)
            assert job is not None
            self.job = job
            pods = self._allowed("pods", lambda: objects.pods(self.cluster, self.job))
            self._note_stops(pods or ())
            phase = state.phase(job, pods)
            if phase in state.ENDS:
                self.is_over = True
                self.log.finish()
            self._tell_phase(phase, pods)
            if phase == "complete":
                return job
            if phase == "failed":
                raise self._failure()
            self._refuse_late(phase, pods or ())
            if phase == "running":
                self.log.start()
                self.show()
            if phase != "running" or any(map(state.is_pending, pods or ())):
                self._tell_obstacles(phase, pods)
            self._wait(version)

    @property
    def _title(self) -> str:
        return title(self.cluster, self.job)

    def _wait(self, version: str) -> None:
        name, begun, least = self.job["metadata"]["name"], time.monotonic(), self.pace.first_wait
        try:
            objects.wait_for_change(self.cluster, name, version, self.pace.look)
        except TransientError as error:  # that it was cut off says nothing; the next look does
            log.debug("%s", error)
            least = max(least, retry_after(error))
        # A watch may end at once, time and again, as behind a proxy that cuts it.
        time.sleep(max(0.0, least - (time.monotonic() - begun)))

    def _allowed(self, what: str, request: Callable[[], T]) -> T | None:
        """What the request gives; None where the right is missing, which is told once."""
        if what in self._denied:
            return None
        try:
            return self._patience.ask(request)
        except ForbiddenError as error:
            self._denied.add(what)
            log.warning("%s; without it less is told of why a job waits or fails", error)
            return None

    def _refuse_deleted(self, job: Object | None) -> None:
        uid = self.job["metadata"]["uid"]
        if job is None or job["metadata"]["uid"] != uid or job["metadata"].get("deletionTimestamp"):
            self.is_over = True
            self.log.stop()
            raise TransientError(
                f"{self._title} was deleted while it ran; the next attempt makes it anew and goes on "
                "from the last checkpoint"
            )

    def _note_stops(self, pods: Iterable[Object]) -> None:
        """Remember how workers ended: a pod that is deleted or restarted no longer tells."""
        for pod in pods:
            for stop in failure.stops(pod):
                if stop not in self._stops:
                    self._stops.add(stop)
                    log.warning("%s", stop)

    def _tell_phase(self, phase: str, pods: list[Object] | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._told.clear()
        count = f" on {sum(map(state.is_running, pods))} pod(s)" if pods else ""
        words = {
            "suspended": "is suspended: it waits for its turn",
            "starting": "is starting",
            "running": f"runs{count}",
            "ending": "has no worker left that runs",
            "complete": "is complete",
            "failed": "failed",
        }
        log.info("%s %s", self._title, words[phase])

    def _failure(self) -> StepError:
        stop = failure.cause(self._stops)
        reached = (state.condition(self.job, "Failed") or {}).get("reason") == "DeadlineExceeded"
        if reached:  # its pods may live on
            self._delete()
        return failure.error(self.job, self._title, self.limits.memory, stop, self._tail)

    def _delete(self) -> None:
        self._patience.ask(lambda: objects.delete(self.cluster, self.job))
        self.is_over = True

    def _tail(self, stop: Stop) -> list[str]:
        """The last lines of the worker that failed."""
        if stop.node == 0 and self.log.tail:
            return list(self.log.tail)
        try:
            with objects.log(self.cluster, stop.pod, tailLines=str(_LINES_SHOWN)) as answer:
                text = answer.read().decode(errors="replace")
        except StepError as error:  # it is gone, or may not be read
            log.debug("%s", error)
            return []
        return [line.rstrip().rpartition("\r")[2] for line in text.split("\n") if line.strip()]

    def _refuse_late(self, phase: str, pods: Iterable[Object]) -> None:
        """Delete the job, and raise ConfigError, where it has run for longer than it may."""
        if self.limits.running is None:
            return
        now = datetime.now(UTC)
        since = state.occupied_since(pods) or (self._since or now if phase == "running" else None)
        if self._since and since != self._since:
            self._spent += (since or now) - self._since
        self._since = since
        spent = self._spent + (now - since if since else timedelta(0))
        if since and spent.total_seconds() >= self.limits.running:
            self._delete()
            raise ConfigError(
                f"{self._title} has run for {duration(spent.total_seconds())} and is past its "
                "deadline; it was deleted: raise --deadline, then run the same command to go on from "
                "the last checkpoint"
            )

    def _tell_obstacles(self, phase: str, pods: list[Object] | None) -> None:
        found: list[Obstacle] = []
        if phase == "suspended":
            found.append(obstacles.of_queue(self.cluster, self.job))
        found += obstacles.of_pods(pods or ())
        found += (
            self._allowed(
                "events", lambda: list(obstacles.of_events(self.cluster, self.job, pods or ()))
            )
            or []
        )
        silent = phase == "starting" and not (found or pods or state.has_begun(self.job))
        if silent and time.monotonic() - self._begun >= self.pace.creation:
            found.append(obstacles.NOTHING_MADE)
        for obstacle in found:
            if obstacle.key not in self._told:
                self._told.add(obstacle.key)
                log.warning("%s: %s", self._title, obstacle)
        self._refuse_impossible(found, pods)

    def _refuse_impossible(self, found: Iterable[Obstacle], pods: list[Object] | None) -> None:
        """Delete the job, and raise ConfigError, where for minutes nothing could be made of it."""
        failed = [each for each in found if each.reason == obstacles.CREATION_FAILED]
        if not failed or pods or state.has_begun(self.job):
            self._failing_since = None
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since >= self.pace.creation:
            self._delete()
            raise ConfigError(f"{self._title} cannot be run, and was deleted: {failed[-1].message}")
