"""What the tests of the dataset step share: rows, files of them, and runs of the step."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steps.dataset import __main__ as step
from steps.dataset.params import DatasetParams
from steps.entrypoint import Run
from steps.errors import StepError
from steps.params import Bound
from steps.record import Result, fingerprint


def turns(*texts: str) -> list[dict[str, Any]]:
    """Turns of user and assistant, in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def chat(number: int | str) -> dict[str, Any]:
    """A row of two turns, unlike those of other numbers."""
    return {"messages": turns(f"question {number}", f"answer {number}")}


def jsonl(rows: Iterable[Any]) -> bytes:
    """The rows as JSON lines; text stands for itself."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def write(path: Path, rows: Iterable[Any]) -> Path:
    """Write the rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(rows))
    return path


def prepare(
    workspace: Path, uri: str | Path, bound: dict[str, Any] | None = None, **params: Any
) -> Result:
    """Run the step's main in this process."""
    values = DatasetParams(data_uri=str(uri), **params)
    run = Run(Bound(workspace=workspace, **(bound or {})))
    inputs = step.inputs(values, run)
    return step.main(values, Run(run.bound, inputs, fingerprint(values, inputs)))


def check(
    workspace: Path, uri: str | Path, bound: dict[str, Any] | None = None, **params: Any
) -> None:
    """Run the step's check in this process."""
    values = DatasetParams(data_uri=str(uri), **params)
    step.check(values, Run(Bound(workspace=workspace, **(bound or {}))))


def attempt(run: Callable[..., Any], workspace: Path, uri: str, **params: Any) -> tuple[int, str]:
    """The exit code and the message that `prepare` or `check` would end with."""
    try:
        run(workspace, uri, **params)
    except StepError as error:
        return error.exit_code, str(error)
    return 0, ""


def read(path: Path) -> list[Any]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def rows(workspace: Path) -> list[Any]:
    """The rows of both splits, those to train on first."""
    folder = workspace / "dataset"
    return read(folder / "train.jsonl") + read(folder / "eval.jsonl")


def one(workspace: Path, row: Any) -> Any:
    """What becomes of a single row."""
    prepare(workspace, write(workspace / "in.jsonl", [row]))
    [found] = rows(workspace)
    return found


def command(
    workspace: Path, uri: str | Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the step as an engine does."""
    arguments = [f"--workspace={workspace}", f"--data-uri={uri}", *flags]
    return subprocess.run(
        [sys.executable, "-m", "steps.dataset", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
