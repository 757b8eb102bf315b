"""The pipeline as a library: declare a DAG, and run it on this machine.

from pathlib import Path
from workflows import run

records = run({"data_uri": "/data/chats.jsonl", "model": "/models/tiny"}, Path("runs/first"))
print(records["evaluate"].metrics["heldout_loss"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflows.local import StepFailedError, run
    from workflows.pipeline import SFT, Parameter, Pipeline, Step

__all__ = ["SFT", "Parameter", "Pipeline", "Step", "StepFailedError", "run"]

_HOMES = {
    "run": "workflows.local",
    "StepFailedError": "workflows.local",
    "SFT": "workflows.pipeline",
    "Parameter": "workflows.pipeline",
    "Pipeline": "workflows.pipeline",
    "Step": "workflows.pipeline",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: `sft --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
