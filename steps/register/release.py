"""What is registered of a run: the model, where it lies, what it was made from, and its scores."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import steps
from steps import record
from steps.entrypoint import Run
from steps.errors import DataError
from steps.logs import public_uri
from steps.record import Asset, Record
from steps.register.params import RegisterParams

log = logging.getLogger(__name__)

MADE_BEFORE = ("dataset", "train", "evaluate")
"""Steps whose metrics are registered, those records that are there."""

# The registry's integers have at most nine digits (MetadataIntValue in its OpenAPI document).
_MOST_INT = 999_999_999

# Kubernetes puts it beside a pod's token.
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Release:
    """A model as it goes into the registry."""

    name: str
    version: str
    author: str
    description: str
    uri: str
    """Where the model can be fetched or served from."""
    digest: str
    """Tells this model from any other: SHA-256 of its folder, or its revision on the hub."""
    properties: dict[str, str]
    """Provenance, as custom properties of the version."""
    metrics: dict[str, float]
    """The same of the steps' metrics: integers and floats."""
    artifact: dict[str, str]
    """Format and source, by the client's names for a model artifact's fields."""


def read(params: RegisterParams, run: Run) -> Release:
    """The run's release, from the records of the steps before.

    Raises DataError where neither a trained nor an evaluated model is there.
    """
    records = _records(run)
    found = model(run)
    digest = found.sha256 or found.revision
    if not digest:
        raise DataError(
            f"{run.workspace.record('evaluate')}: no digest or revision of the model; "
            "run the evaluate step again"
        )
    return Release(
        name=params.name,
        version=params.version,
        author=params.author,
        description=params.description,
        uri=_uri(found, run),
        digest=digest,
        properties=_properties(found, records, run),
        metrics=_metrics(found, records),
        artifact={
            "model_format_name": params.format_name,
            "model_format_version": params.format_version,
            **_source(run),
        },
    )


def model(run: Run) -> Asset:
    """The model to register: the run's own, else the one that was given to evaluate.

    Raises DataError where there is none, or the run's own is no longer whole.
    """
    records = _records(run)
    if "train" in records:
        if not record.is_whole(records["train"], run.workspace):
            raise DataError(
                f"{run.workspace.model}: not what {run.workspace.record('train').name} says; "
                "run the train step again"
            )
        return records["train"].outputs["model"]
    if "evaluate" in records and "model" in records["evaluate"].inputs:
        return records["evaluate"].inputs["model"]
    raise DataError(
        f"{run.workspace.record('train')}: not there; run the train step first, "
        "or the evaluate step with a given model (phase_03_eval_opt_model)"
    )


def held_digest(properties: Mapping[str, object] | None) -> str:
    """Which model a registered version holds, by its custom properties; empty if they do not tell."""
    known = properties or {}
    return str(known.get("sft.model_sha256") or known.get("sft.model_revision") or "")


def _records(run: Run) -> dict[str, Record]:
    found = {step: record.read(run.workspace, step) for step in MADE_BEFORE}
    if found["train"] is None:
        found["dataset"] = None  # a model that was not trained here was not made from its rows
    return {step: done for step, done in found.items() if done is not None}


def _uri(model: Asset, run: Run) -> str:
    """The model's own address, else that of its folder: in the run's claim, or on this machine."""
    if model.uri and "://" in model.uri:
        return public_uri(model.uri)
    if model.uri and model.revision:
        # As KServe reads it: https://kserve.github.io/website/docs/model-serving/storage/overview
        return f"hf://{model.uri}:{model.revision}"
    path = Path(os.path.normpath(run.workspace.locate(model.path or "")))
    if run.bound.volume_claim and path.is_relative_to(run.workspace.root):
        inside = Path(run.bound.volume_path.strip("/")) / path.relative_to(run.workspace.root)
        return f"pvc://{run.bound.volume_claim}/{inside}"
    return path.as_uri()


def _properties(model: Asset, records: Mapping[str, Record], run: Run) -> dict[str, str]:
    properties: dict[str, str | None] = {
        "sft.run": run.name,
        "sft.run_uid": run.bound.run_uid,
        "sft.pipeline_version": steps.__version__,
        "sft.model_sha256": model.sha256,
        "sft.model_revision": model.revision,
    }
    if "train" in records:
        base = records["train"].inputs["base_model"]
        properties |= {
            "sft.base_model": public_uri(base.uri or base.path or ""),
            "sft.base_revision": base.revision,
            "sft.base_sha256": base.sha256,
        }
    if "dataset" in records:
        data = records["dataset"]
        properties |= {
            "sft.data_uri": public_uri(data.parameters["data_uri"]),
            "sft.data_sha256": data.outputs["train"].sha256,
        }
    return {name: value for name, value in properties.items() if value}


def _metrics(model: Asset, records: Mapping[str, Record]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for step, done in records.items():
        scored = done.inputs.get("model", model)
        if step == "evaluate" and scored.identity != model.identity:
            log.warning(
                "evaluate scored another model (%s) than the run's own: its scores are left out",
                scored.uri or scored.path,
            )
            continue
        metrics |= record.numbers(done.metrics)
    return {
        name: float(value) if abs(value) > _MOST_INT else value for name, value in metrics.items()
    }


def _source(run: Run) -> dict[str, str]:
    """Where the model comes from, in the five terms of the registry.

    Kind and class say what made it, group is the namespace of the run, id and name are the run's:
    the run's unique ID where an engine gave one, else its name.
    """
    return {
        "model_source_kind": "argo-workflows" if run.bound.run_uid else "local",
        "model_source_class": "pipelinerun",
        "model_source_group": _NAMESPACE.read_text().strip() if _NAMESPACE.exists() else "",
        "model_source_id": run.bound.run_uid or run.name,
        "model_source_name": run.name,
    }
