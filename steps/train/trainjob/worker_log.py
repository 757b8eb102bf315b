"""The log of a TrainJob's node 0, line by line, over lost connections, restarts and new pods."""

import contextlib
import json
import logging
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import urllib3

from steps import files
from steps.errors import (
    ConfigError,
    CredentialsError,
    ForbiddenError,
    NotThereError,
    StepError,
    TransientError,
)
from steps.train.trainjob import objects
from steps.train.trainjob.cluster import Cluster
from steps.train.trainjob.manifest import Object
from steps.train.trainjob.patience import Pace, retry_after
from steps.train.trainjob.state import container, is_over

log = logging.getLogger(__name__)

# How a step of this project writes its lines: the time is told again here.
_OWN_LINE = re.compile(r"\S+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w-]+: (.*)")
# The worker's progress, which this step tells by itself.
_PROGRESS = re.compile(r"training: [\d,]+ of [\d,]+ steps\b")
_LINES_SHOWN = 20
_LONGEST_BAR = 1 << 16
_SECONDS_TO_STOP = 5.0
_SECONDS_TO_FINISH = 60.0


class Lines:
    """Lines out of pieces of a log that is read again from a second already seen: each line once."""

    def __init__(self, since: datetime | None = None, recent: list[str] | None = None) -> None:
        self.since = since
        """The second of the newest line; the API knows no finer time to begin at."""
        self.recent = Counter(recent or [])
        """The lines of that second."""
        self._repeated: Counter[str] = Counter()
        self._buffer = b""
        self._kubelet = ""

    def begin(self) -> None:
        """The log is read from `since`, so that the lines of that second come once more."""
        self._repeated, self._buffer = self.recent.copy(), b""

    def feed(self, piece: bytes) -> Iterator[str]:
        """The lines that the piece completes; half a line, or half a letter, waits for the rest."""
        *whole, self._buffer = (self._buffer + piece).split(b"\n")
        if len(self._buffer) > _LONGEST_BAR and b"\r" in self._buffer:
            stamp, bar = self._buffer.partition(b" ")[0], self._buffer.rpartition(b"\r")[2]
            self._buffer = stamp + b" \r" + bar
        for line in whole:
            yield from self._take(line)

    def rest(self) -> Iterator[str]:
        """The last line of a container that has ended without a newline."""
        line, self._buffer = self._buffer, b""
        if line:
            yield from self._take(line)

    def _take(self, raw: bytes) -> Iterator[str]:
        stamp, _, text = raw.decode(errors="replace").partition(" ")
        text = text.rstrip("\r").rpartition("\r")[2].rstrip()  # a bar as it stood at last
        try:
            second = datetime.fromisoformat(stamp).replace(microsecond=0)
        except ValueError:  # the kubelet's own words, which it says again whenever it is asked
            words = f"{stamp} {text}".rstrip()
            if words != self._kubelet:
                self._kubelet = words
                yield words
            return
        line = f"{stamp} {text}"
        if self._repeated[line]:
            self._repeated[line] -= 1
            return
        if self.since is None or second > self.since:
            self.since, self.recent = second, Counter()
        if second == self.since:
            self.recent[line] += 1
        if text:
            yield text


class WorkerLog:
    """Tells node 0's lines in this step's log, in a thread of its own.

    `bookmark` is a file: how far an attempt before has told them, and how far this one has.
    """

    def __init__(self, cluster: Cluster, job: Object, bookmark: Path, pace: Pace) -> None:
        self._cluster, self._job, self._bookmark, self._pace = cluster, job, bookmark, pace
        self.tail: deque[str] = deque(maxlen=_LINES_SHOWN)
        self._pod, self._restarts, self._lines = "", 0, Lines()
        self._done: list[str] = []
        self._open: urllib3.BaseHTTPResponse | None = None
        self._wait = pace.first_wait
        self._finishing, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker log", daemon=True)

    def start(self) -> None:
        """Begin, where nothing was begun yet."""
        if not (self._thread.ident or self._stopped.is_set()):
            self._recall()
            self._thread.start()

    def finish(self) -> None:
        """Tell what is left of the log of a job that has ended, and end."""
        self.start()
        self._finishing.set()
        self._thread.join(_SECONDS_TO_FINISH)
        self.stop()

    def stop(self) -> None:
        """End at once."""
        self._stopped.set()
        self._finishing.set()
        answer = self._open
        if answer is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                answer.shutdown()
        if self._thread.ident:
            self._thread.join(_SECONDS_TO_STOP)
            self._leave_bookmark()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                busy = self._read()
            except ForbiddenError as error:
                log.warning("%s; the workers' log is not shown, the training goes on", error)
                return
            # A login that has ended is told by who follows the job; a node that knows none may know it later.
            except (CredentialsError, TransientError) as error:
                log.debug("%s", error)
                self._pause(max(self._wait, retry_after(error)))
                self._wait = min(2 * self._wait, self._pace.longest_wait)
                continue
            except StepError as error:
                log.warning("%s; the workers' log is not shown, the training goes on", error)
                return
            if self._finishing.is_set() and not busy:
                return
            self._pause(self._pace.first_wait if busy else self._pace.look)

    def _pause(self, seconds: float) -> None:
        """Wait so long, or but a moment where the job has ended: its last lines are still to be told."""
        if self._finishing.wait(seconds):
            self._stopped.wait(self._pace.first_wait)

    def _read(self) -> bool:
        """Tell all that there is, as long as it lasts; whether more may come."""
        pods = [pod for pod in objects.pods(self._cluster, self._job) if objects.rank(pod) == 0]
        busy = False
        for pod in pods:
            if pod["metadata"]["uid"] not in self._done:
                busy = self._read_pod(pod, replaced=pod is not pods[-1])
        return busy

    def _read_pod(self, pod: Object, *, replaced: bool) -> bool:
        uid, name, status = pod["metadata"]["uid"], pod["metadata"]["name"], container(pod)
        if uid != self._pod:
            # Another pod is another clock.
            self._pod, self._restarts, self._lines = uid, 0, Lines()
        over = is_over(pod) or replaced
        restarts = status.get("restartCount", 0)
        started = any(
            state in (status.get(which) or {})
            for which, state in (("state", "running"), ("state", "terminated"), ("lastState", "terminated"))
        )  # fmt: skip
        try:
            if restarts > self._restarts:
                with contextlib.suppress(ConfigError):  # cleaned up already
                    self._stream(name, previous="true")
                    self._tell(self._lines.rest())
                self._restarts = restarts
            if started:
                self._stream(name, follow="true")
        except NotThereError:
            over = True
        except TransientError as error:
            if not replaced:  # the node of one that was may never answer again
                raise
            log.debug("%s", error)
        except ConfigError as error:  # 400: it is about to start, or its log is gone
            log.debug("%s", error)
        # The pod was over before its log was read: there is no more of it.
        if over and not self._stopped.is_set():
            self._tell(self._lines.rest())
            self._done.append(uid)
        return started and not over

    def _stream(self, pod: str, **asked: str) -> None:
        if self._lines.since:
            asked["sinceTime"] = self._lines.since.isoformat()
        with objects.log(self._cluster, pod, timestamps="true", **asked) as answer:
            self._open, self._wait = answer, self._pace.first_wait
            self._lines.begin()
            try:
                for piece in answer.stream(decode_content=False):
                    if self._stopped.is_set():
                        return
                    self._tell(self._lines.feed(piece))
                    self._leave_bookmark()  # whoever is killed leaves none
            finally:
                self._open = None

    def _tell(self, lines: Iterator[str]) -> None:
        for line in lines:
            own = _OWN_LINE.fullmatch(line)
            level, text = (own[1], own[2]) if own else ("INFO", line)
            if own and _PROGRESS.match(text):
                continue
            self.tail.append(text)
            log.log(logging.getLevelNamesMapping()[level], "node 0 | %s", text)

    def _recall(self) -> None:
        try:
            told: dict[str, Any] = json.loads(self._bookmark.read_text(encoding="utf-8"))
        except OSError as error:
            log.debug("%s", error)
            return
        if told["job"] == self._job["metadata"]["uid"]:
            self._pod, self._restarts, self._done = told["pod"], told["restarts"], told["done"]
            since = datetime.fromisoformat(told["since"]) if told["since"] else None
            self._lines = Lines(since, told["recent"])

    def _leave_bookmark(self) -> None:
        """For an attempt after this one; a volume that does not take it ends nothing."""
        lines = self._lines
        told = {
            "job": self._job["metadata"]["uid"],
            "pod": self._pod,
            "restarts": self._restarts,
            "done": self._done,
            "since": lines.since.isoformat() if lines.since else None,
            "recent": list(lines.recent.elements()),
        }
        try:
            files.write(self._bookmark, json.dumps(told))
        except OSError as error:
            log.debug("%s", error)
