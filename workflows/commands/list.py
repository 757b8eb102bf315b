"""`sft list`: the runs on a cluster, the newest first."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steps import flags
from steps.quantities import duration
from workflows.cluster import connection
from workflows.pipeline import SFT

if TYPE_CHECKING:
    from workflows.cluster.run import Run

_HEAD = ("NAME", "PHASE", "STEP", "AGE", "DURATION", "TITLE")


def main(argv: Sequence[str]) -> int:
    """Print a line a run and return 0."""
    parser = flags.Parser(prog="sft list", description="The runs on Argo Workflows.")
    connection.add_template_flags(parser, SFT)
    connection.add_flags(parser)
    given = connection.parse(parser, argv)
    template = connection.template(given, SFT)
    cluster = connection.connect(given)

    from workflows.cluster.run import read

    runs = [read(each, SFT) for each in cluster.runs(f"{template.label}={template.name}")]
    if not runs:
        print(f"no runs of {template.name} in namespace {cluster.namespace}")  # noqa: T201
        return 0
    now = datetime.now(UTC)
    rows = [_HEAD, *(_row(run, now) for run in sorted(runs, key=_created, reverse=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())  # noqa: T201
    return 0


def _created(run: "Run") -> datetime:
    return run.created


def _row(run: "Run", now: datetime) -> tuple[str, ...]:
    took = duration(((run.finished or now) - run.started).total_seconds()) if run.started else ""
    age = duration((now - run.created).total_seconds())
    return (run.name, run.phase, _at_work(run), age, took, run.title)


def _at_work(run: "Run") -> str:
    """The steps that are at work with how far they are, or those that failed."""
    phases = ("Failed", "Error")
    shown = []
    for step in run.steps:
        if run.is_over and step.phase in phases:
            code = "" if step.exit_code is None else f" (exit code {step.exit_code})"
            shown.append(f"{step.name}{code}")
        elif not run.is_over and step.is_at_work:
            done = f" {100 * step.progress[0] // step.progress[1]}%" if step.progress else ""
            shown.append(f"{step.name}{done}")
    return ", ".join(shown)
