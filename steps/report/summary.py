"""The end of a run in a few lines: the tuned model beside the base model, and what lies where."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steps.record import Record
from steps.workspace import Workspace

_NAMES = {
    "heldout_loss": "held-out loss",
    "heldout_perplexity": "held-out perplexity",
    "heldout_exact_match": "exact match",
    "heldout_chrf": "chrF",
}


def summary(records: Mapping[str, Record], workspace: Workspace) -> RenderableType:
    """A table of base against tuned, then the model, the registration and the report."""
    lines: list[RenderableType] = []
    if "evaluate" in records:
        lines.append(_scores(records["evaluate"].metrics))
    if workspace.model.exists():
        lines.append(Text(f"model    {workspace.model}"))
    if "register" in records:
        register = records["register"]
        text = register.reason or f"{register.results.get('uri')} {register.results.get('version')}"
        lines.append(Text(f"registry {register.status}: {text}"))
    if workspace.report.exists():
        lines.append(Text(f"report   {workspace.report}"))
    return Group(*lines)


def _scores(metrics: Mapping[str, float]) -> Table:
    table = Table(title=None, box=None, pad_edge=False, padding=(0, 2))
    table.add_column("")
    table.add_column("base", justify="right")
    table.add_column("tuned", justify="right", style="bold")
    for name, value in metrics.items():
        if name.endswith("_base") or "_stderr" in name:
            continue
        base = metrics.get(f"{name}_base")
        table.add_row(
            _NAMES.get(name, name), "-" if base is None else _number(base), _number(value)
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
