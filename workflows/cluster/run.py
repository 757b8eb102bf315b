"""A run as its Workflow tells it: the phase, each step's state, results, and the exit code."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workflows.pipeline import Pipeline

_OVER = ("Succeeded", "Failed", "Error")
_FAILED = ("Failed", "Error")
_KINDS = ("Pod", "Retry", "Skipped")  # of nodes that stand for a template that was to run


@dataclass(frozen=True)
class StepState:
    """How far a step is."""

    name: str
    phase: str
    message: str = ""
    progress: tuple[int, int] | None = None
    exit_code: int | None = None
    """Of its last attempt, where that has ended."""

    @property
    def is_at_work(self) -> bool:
        """Whether it has begun and is not over."""
        return self.phase not in (*_OVER, "Skipped", "Omitted")


@dataclass(frozen=True)
class Run:
    """A workflow as people look at it."""

    name: str
    phase: str
    message: str
    title: str
    created: datetime
    started: datetime | None
    finished: datetime | None
    steps: tuple[StepState, ...]
    outputs: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen; waiting for a lock or a pod is not the end."""
        return self.phase in _OVER

    @property
    def exit_code(self) -> int:
        """0 where all went well, else that of the first step that failed, 1 where none tells it."""
        if self.phase == "Succeeded":
            return 0
        codes = [step.exit_code for step in self.steps if step.phase in _FAILED and step.exit_code]
        return codes[0] if codes and 0 < codes[0] < 256 else 1


def read(workflow: Mapping[str, Any], pipeline: Pipeline) -> Run:
    """The run that a Workflow describes."""
    metadata, status = workflow["metadata"], workflow.get("status") or {}
    created = _time(metadata.get("creationTimestamp"))
    assert created is not None
    outputs = (status.get("outputs") or {}).get("parameters") or []
    return Run(
        name=metadata["name"],
        phase=status.get("phase") or "Pending",
        message=status.get("message") or "",
        title=(metadata.get("annotations") or {}).get("workflows.argoproj.io/title", ""),
        created=created,
        started=_time(status.get("startedAt")),
        finished=_time(status.get("finishedAt")),
        steps=tuple(_steps(status.get("nodes") or {}, pipeline)),
        outputs={each["name"]: each.get("value") or "" for each in outputs},
    )


def _steps(nodes: Mapping[str, Any], pipeline: Pipeline) -> list[StepState]:
    """Steps in the pipeline's order, then whatever else ran: the exit handler, a claim's maker."""
    by_template: dict[str, list[Mapping[str, Any]]] = {}
    for node in nodes.values():
        if node.get("type") in _KINDS and node.get("templateName"):
            by_template.setdefault(node["templateName"], []).append(node)
    names = {step.template: step.name for step in pipeline.steps}
    order = [*(name for name in names if name in by_template)]
    order += sorted(name for name in by_template if name not in names)
    return [_step(names.get(name, name), by_template[name]) for name in order]


def _step(name: str, nodes: list[Mapping[str, Any]]) -> StepState:
    """One step out of its nodes: its attempts, and the Retry node above them where there is one."""
    whole = next((node for node in nodes if node["type"] == "Retry"), None)
    attempts = [node for node in nodes if node is not whole]
    # Times are to the second; the attempt's number, in the name, tells those of one second apart.
    last = max(attempts, key=_begun) if attempts else whole
    assert last is not None
    phase, message = last.get("phase") or "Pending", last.get("message") or ""
    if whole and whole.get("phase") in _OVER:
        phase, message = whole["phase"], message or whole.get("message") or ""
    elif whole and phase in _FAILED:
        phase, message = "Retrying", f"attempt {len(attempts)}: {message or phase}"
    return StepState(
        name=name,
        phase=phase,
        message=message,
        progress=_progress(last.get("progress")),
        exit_code=_number((last.get("outputs") or {}).get("exitCode")),
    )


def _begun(node: Mapping[str, Any]) -> tuple[str, int, str]:
    name = str(node.get("name") or "")
    return str(node.get("startedAt") or ""), len(name), name


def _progress(text: str | None) -> tuple[int, int] | None:
    """Units done and in all; Argo counts a pod that says nothing as one unit."""
    done, _, total = (text or "").partition("/")
    if not (done.isdigit() and total.isdigit()) or int(total) <= 1:
        return None
    return int(done), int(total)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
