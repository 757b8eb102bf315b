"""Print how a run ended: what failed, what it scored, and what lies where.

python -m steps.report --workspace /volume/runs/sft-7xk2p --status Succeeded
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steps import record
from steps.workspace import STEPS, Workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Print the summary of the run's records; an engine's exit handler."""
    parser = argparse.ArgumentParser(prog="python -m steps.report", description=__doc__)
    parser.add_argument("--workspace", required=True, help="folder of the run")
    parser.add_argument("--status", default="", help="how the engine says that the run ended")
    parser.add_argument("--failures", default="", help="what failed, as Argo's workflow.failures")
    given = parser.parse_args(argv)

    from rich.console import Console

    from steps.report.summary import summary

    console = Console(highlight=False, soft_wrap=True, width=100)
    if given.status:
        console.print(f"{given.status}: {given.workspace}", markup=False)
    for failure in _failures(given.failures):
        name, message = failure.get("displayName", ""), failure.get("message", "")
        console.print(f"{name}: {message}", markup=False)
    workspace = Workspace(Path(given.workspace))
    found = {step: record.read(workspace, step) for step in STEPS}
    console.print(summary({step: done for step, done in found.items() if done}, workspace))
    return 0


def _failures(text: str) -> list[dict[str, Any]]:
    """Argo's list of failed pods: JSON, and that once more inside a JSON string."""
    try:
        found = json.loads(text)
        if isinstance(found, str):
            found = json.loads(found)
    except (
        ValueError
    ):  # a newer Argo may write it otherwise; the scores are worth more than its form
        return [{"displayName": "failures", "message": text}] if text else []
    every = found if isinstance(found, list) else []
    return [each for each in every if isinstance(each, dict)]


if __name__ == "__main__":
    sys.exit(main())
