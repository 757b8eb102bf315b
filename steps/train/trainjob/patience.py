"""How long and how often a cluster is asked: it may be away for a while, and the job goes on."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from steps.errors import TransientError
from steps.quantities import duration

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """Seconds between one thing and the next, and until something is given up."""

    look: int = 10
    """Between two looks at a job that tells no change."""
    first_wait: float = 1.0
    """After a failed request; doubled each time."""
    longest_wait: float = 60.0
    reminder: float = 600.0
    """Between two lines that the cluster is still away."""
    first_look: float = 15.0
    """Until a cluster that does not answer before there is anything to lose is given up."""
    submission: float = 300.0
    """Until a cluster that does not answer before there is a job is given up."""
    deletion: float = 900.0
    """Until a deleted job that does not go is given up: its workers may take minutes for a checkpoint."""
    creation: float = 300.0
    """Until a job of which nothing can be made is given up."""
    results: float = 180.0
    """Until a shared volume shows what was written elsewhere: NFS trusts for a minute what it knows."""


class Patience:
    """Asks again where a cluster does not answer for now, and tells so now and then."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lost: float | None = None
        self._told = 0.0

    def ask(self, request: Callable[[], T], at_most: float | None = None) -> T:
        """What the request gives, however long that takes; TransientError after `at_most` seconds."""
        wait, begun = self._pace.first_wait, time.monotonic()
        while True:
            try:
                answer = request()
            except TransientError as error:
                now = time.monotonic()
                if at_most is not None and now - begun >= at_most:
                    raise
                self._tell(error, now)
                time.sleep(max(wait, retry_after(error)))
                wait = min(2 * wait, self._pace.longest_wait)
                continue
            if self._lost is not None:
                log.info(
                    "the cluster answers again after %s", duration(time.monotonic() - self._lost)
                )
                self._lost = None
            return answer

    def _tell(self, error: TransientError, now: float) -> None:
        if self._lost is None:
            self._lost, self._told = now, now
            log.warning("%s; asking again until it answers", error)
        elif now - self._told >= self._pace.reminder:
            self._told = now
            log.warning("no answer for %s: %s", duration(now - self._lost), error)


def retry_after(error: BaseException) -> float:
    """The seconds that the server wants to be left alone (429); 0 where it says nothing."""
    headers = getattr(error.__cause__, "headers", None) or {}
    told = str(headers.get("Retry-After", ""))
    return float(told) if told.isdigit() else 0.0
