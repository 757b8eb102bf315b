"""Following a run to its end, through whatever the network does meanwhile."""

import time
from collections.abc import Mapping

from steps.errors import DataError, NotThereError, TransientError
from workflows.cluster.api import Cluster
from workflows.cluster.run import Run, StepState, read
from workflows.console import Console
from workflows.pipeline import Pipeline

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_SHOWN_TENTHS = 10  # of a step's work, where a line is told and no bar moves


def follow(cluster: Cluster, name: str, pipeline: Pipeline, console: Console) -> Run:
    """Show what the run does until it is over, and return its end.

    A lost connection is taken up again, however long that takes. DataError where it is deleted.
    """
    view = _View(console)
    wait, seen = _FIRST_WAIT, False
    try:
        while True:
            trouble = None
            try:
                for change, workflow in enumerate(cluster.changes(name)):
                    if change:
                        wait = _FIRST_WAIT
                    run, seen = read(workflow, pipeline), True
                    view.show(run)
                    if run.is_over:
                        return run
            except TransientError as error:
                trouble = str(error)
            view.connection(trouble)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    except NotThereError as error:
        known = "nothing is left to follow; its folder on the volume stays"
        raise DataError(f"{error}: {known if seen else 'sft list shows the runs'}") from error
    finally:
        view.close()


class _View:
    """Tells what is new, and moves the bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: tuple[str, str] | None = None
        self._steps: Mapping[str, StepState] = {}
        self._bars: set[str] = set()
        self._trouble: str | None = None

    def show(self, run: Run) -> None:
        """Lines for what changed since the last look."""
        if self._trouble:
            self._console.note("the connection is back")
            self._trouble = None
        if self._run != (run.phase, run.message):
            self._run = run.phase, run.message
            tell = self._console.error if run.phase in ("Failed", "Error") else self._console.note
            tell(_joined(f"{run.name} {run.phase}", run.message))
        for step in run.steps:
            self._show_step(step, self._steps.get(step.name))
        self._steps = {step.name: step for step in run.steps}

    def _show_step(self, step: StepState, before: StepState | None) -> None:
        if before is None or (step.phase, step.message) != (before.phase, before.message):
            level = "ERROR" if step.phase in ("Failed", "Error") else "INFO"
            level = "WARNING" if step.phase == "Retrying" else level
            self._console.line(step.name, level, _joined(step.phase, step.message))
        if step.is_at_work and step.name not in self._bars:
            self._bars.add(step.name)
            self._console.started(step.name)
        if step.is_at_work:
            self._console.progress(step.name, step.progress)
            if step.progress and not self._console.has_bars:
                self._tell_tenth(step, before)
        elif step.name in self._bars:
            self._bars.remove(step.name)
            self._console.finished(step.name)

    def _tell_tenth(self, step: StepState, before: StepState | None) -> None:
        if _tenth(step) != (_tenth(before) if before else None):
            assert step.progress is not None
            self._console.line(step.name, "INFO", "{}/{}".format(*step.progress))

    def connection(self, trouble: str | None) -> None:
        """Tell a lost connection once, until it is back."""
        if trouble and not self._trouble:
            self._console.line("sft", "WARNING", f"connection lost, the run goes on: {trouble}")
        self._trouble = trouble or self._trouble

    def close(self) -> None:
        """Take away the bars that are left."""
        for name in self._bars:
            self._console.finished(name)


def _tenth(step: StepState) -> int | None:
    if not step.progress:
        return None
    done, total = step.progress
    return done * _SHOWN_TENTHS // total


def _joined(text: str, message: str) -> str:
    return f"{text}: {message}" if message else text
