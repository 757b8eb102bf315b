"""The claim that holds the runs."""

from typing import Any

from workflows.objects import kubernetes_object
from workflows.settings import Settings

CLAIM = "claim"
"""Template that makes the claim of a run, where each has its own."""


def name(settings: Settings) -> str:
    """The claim's name; one that is there already has no prefix of ours."""
    claim = settings.storage.claim
    return settings.named(claim) if settings.storage.create else claim


def claim(settings: Settings) -> dict[str, Any]:
    """The PersistentVolumeClaim of all runs."""
    storage = settings.storage
    spec: dict[str, Any] = {
        "accessModes": [storage.access_mode],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class:
        spec["storageClassName"] = storage.storage_class
    return kubernetes_object("PersistentVolumeClaim", storage.claim, settings, spec=spec)


def claim_of_run(settings: Settings, run: str) -> dict[str, Any]:
    """The PersistentVolumeClaim of one run, by the run's name."""
    made = claim(settings)
    # Without a namespace it is the run's, whatever namespace the template lies in.
    return {**made, "metadata": {"name": run, "labels": made["metadata"]["labels"]}}
