"""The result record of a step: what resuming, the report and the registry read.

It is written last and atomically, so its presence means that the step's outputs are whole.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import steps
from steps import files
from steps.params import StepParams, deciding
from steps.workspace import Workspace


class Asset(BaseModel):
    """A file or folder that a step read or wrote, or a source outside the workspace."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    path: str | None = None
    """Relative to the workspace; absolute where it lies elsewhere."""
    bytes: int | None = None
    sha256: str | None = None
    """Of a folder: the digest of its sorted lines of path and sha256."""
    uri: str | None = None
    revision: str | None = None
    etag: str | None = None

    @classmethod
    def of(cls, path: Path, workspace: Workspace) -> "Asset":
        """Describe a file or folder of the workspace, reading it whole for its digest."""
        return cls(
            path=path.relative_to(workspace.root).as_posix(),
            bytes=files.size(path),
            sha256=files.digest(path),
        )

    @property
    def identity(self) -> str:
        """What tells this asset from another version of it."""
        return self.sha256 or self.revision or self.etag or self.uri or self.path or ""


@dataclass
class Result:
    """What a step's main hands back; the entrypoint makes the record of it."""

    outputs: dict[str, Asset] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """More for the report: statistics, timings."""
    results: dict[str, str] = field(default_factory=dict)
    """Small results for the engine, under 1 KB each (the folder of `--outputs`)."""
    skipped: str | None = None
    """Why nothing was done, where that is so."""


class Record(BaseModel):
    """A step's result as `<step>.json` holds it."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, defer_build=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    step: str
    status: Literal["done", "skipped"]
    reason: str | None = None
    fingerprint: str
    started: datetime
    finished: datetime
    seconds: float
    parameters: dict[str, Any]
    inputs: dict[str, Asset]
    outputs: dict[str, Asset]
    metrics: dict[str, int | float]
    versions: dict[str, str]
    details: dict[str, Any] = {}
    results: dict[str, str] = {}

    def write(self, workspace: Workspace) -> None:
        """Write the record under its final name, atomically."""
        text = self.model_dump_json(by_alias=True, exclude_none=True, indent=2)
        files.write(workspace.record(self.step), text + "\n")


def read(workspace: Workspace, step: str) -> Record | None:
    """The step's record; None where it has not ended well, or the file is not a record of ours."""
    try:
        return Record.model_validate_json(workspace.record(step).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def fingerprint(params: StepParams, inputs: Mapping[str, Asset]) -> str:
    """Digest of all that decides the step's result: parameters, code version, input digests."""
    parts = {
        "step": params.step,
        "code": steps.__version__,
        "parameters": deciding(params),
        "inputs": {name: asset.identity for name, asset in sorted(inputs.items())},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_whole(record: Record, workspace: Workspace) -> bool:
    """Whether every output that the record names is still there, at its size."""
    for asset in record.outputs.values():
        if asset.path is None:
            continue
        path = workspace.locate(asset.path)
        if not path.exists() or files.size(path) != asset.bytes:
            return False
    return True


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics; JSON has no NaN, and a record holds numbers only."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of the installed packages that decide the result, and of this one."""
    found = {"sft-pipeline": steps.__version__}
    for package in packages:
        # What is loaded says it at once; to look up what is installed takes its time.
        module = sys.modules.get(package)
        loaded = getattr(module, "__version__", None) or getattr(module, "VERSION", None)
        found[package] = str(loaded or _installed(package))
    return found


def _installed(package: str) -> str:
    import importlib.metadata  # its imports would slow every --help

    return importlib.metadata.version(package)


def now() -> datetime:
    """The time in UTC, to the second's thousandth."""
    return datetime.now(UTC)
