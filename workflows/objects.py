"""Kubernetes objects as plain data, with what all of them carry: prefix, namespace, labels."""

from typing import Any

from workflows.settings import Settings

OWN_LABELS = ("app.kubernetes.io/part-of", "app.kubernetes.io/component")
"""What network policies and lists find our objects and pods by."""


def kubernetes_object(
    kind: str,
    name: str,
    settings: Settings,
    *,
    version: str = "v1",
    cluster_scoped: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """An object of that kind; `fields` are those beside its metadata (`spec`, `rules`)."""
    metadata: dict[str, Any] = {"name": settings.named(name)}
    if settings.namespace and not cluster_scoped:
        metadata["namespace"] = settings.namespace
    metadata["labels"] = labels(settings)
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def labels(settings: Settings) -> dict[str, str]:
    """Labels of every object, and of every pod of a run."""
    return {**settings.labels, "app.kubernetes.io/part-of": settings.named("sft")}
