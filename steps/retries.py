"""Asking again, after a wait, where a failure may pass."""

import email.utils
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from steps.errors import TransientError

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 6
"""Attempts in a row that may bring nothing."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds; each wait is twice the one before."""


class TryAgain(Exception):  # noqa: N818  # an outcome of an attempt, not a fault of the program
    """An attempt failed in a way that another may not. `after` is in seconds, if the server said."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def persist(attempt: Callable[[], T], name: str, advanced: Callable[[], bool] = lambda: False) -> T:
    """The attempt's result; it is made again, after a wait, as long as it raises TryAgain.

    Raises TransientError after TRIES attempts in a row of which none has `advanced`.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except TryAgain as error:
            failures = 0 if advanced() else failures + 1
            if failures >= TRIES:
                raise TransientError(
                    f"{name}: {error}, {TRIES} times in a row; run the same command again later"
                ) from error
            backoff = FIRST_WAIT * 2 ** max(failures - 1, 0)
            wait = min(backoff if error.after is None else error.after, LONGEST_WAIT)
            log.warning("%s: %s; trying again in %.1f s", name, error, wait)
            time.sleep(wait)


def retry_after(header: str) -> float | None:
    """Seconds that a Retry-After asks to wait, a number of them or a date; None where it is neither."""
    text = header.strip()
    try:
        if text.isdecimal():
            return float(text)
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
