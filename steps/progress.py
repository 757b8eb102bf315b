"""Progress of a piece of work: a bar on a terminal, log lines for a collector, Argo's progress file."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from steps.quantities import duration

log = logging.getLogger(__name__)

_LINE_EVERY = 10.0
_FILE_EVERY = 0.5


class Progress:
    """Counts towards `total` units; `update` says how far the work is."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, max(total, 1), unit
        self._started = self._line_at = time.monotonic()
        self._file_at = 0.0
        self._first: int | None = None
        # https://argo-workflows.readthedocs.io/en/latest/progress/: the executor reads `N/M` from it.
        self._file = os.environ.get("ARGO_PROGRESS_FILE")

    def update(self, done: int, **facts: str) -> None:
        """Tell that `done` of the total units are done; `facts` are shown beside (loss, rate)."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        last = done >= self._total
        if self._file and (last or now - self._file_at >= _FILE_EVERY):
            self._file_at = now
            with contextlib.suppress(OSError):  # progress is a courtesy: never a reason to fail
                Path(self._file).write_text(f"{min(done, self._total)}/{self._total}\n")
        self._show(done, now, last, facts)

    def _show(self, done: int, now: float, last: bool, facts: dict[str, str]) -> None:
        if not last and now - self._line_at < _LINE_EVERY:
            return
        self._line_at = now
        words = [f"{self._what}: {done:,} of {self._total:,} {self._unit}"]
        words += [f"{name.replace('_', ' ')} {value}" for name, value in facts.items()]
        rate = (done - (self._first or 0)) / max(now - self._started, 1e-9)
        if not last and rate > 0:
            words.append(f"{duration((self._total - done) / rate)} left")
        log.info(", ".join(words))


class _Bar(Progress):
    """The same on a terminal."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        super().__init__(what, total, unit)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as Bar,
        )

        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self.bar.add_task(what, total=self._total, facts="")

    def _show(self, done: int, now: float, last: bool, facts: dict[str, str]) -> None:
        shown = " ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        self.bar.update(self._task, completed=done, facts=shown)
        if last:
            super()._show(done, now, last, facts)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Progress]:
    """Progress over a block of work."""
    if not sys.stderr.isatty():
        yield Progress(what, total, unit)
        return
    shown = _Bar(what, total, unit)
    with shown.bar:
        yield shown
