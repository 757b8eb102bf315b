"""The claim that holds the runs, and which others pods have beside it."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from steps import addresses
from steps.dataset.params import DatasetParams
from steps.errors import UsageError
from steps.evaluate.params import EvaluateParams
from steps.params import StepParams
from steps.train.params import TrainParams
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


def mounted(settings: Settings) -> set[str]:
    """Claims that the pods have, as far as their names are known before the run's is."""
    return {*settings.claims, *([] if settings.storage.per_run else [name(settings)])}


def not_mounted(models: Mapping[str, StepParams], claims: Collection[str]) -> list[str]:
    """A line for each pvc:// address of the parameters that lies on none of the pods' claims."""
    listed = ", ".join(sorted(claims)) or "none"
    return [
        f"{flag} {uri}: the claim {claim!r} is not mounted in the pods (those that are: {listed}); "
        "name it in the setting `claims`, render and apply"
        for flag, uri, claim in _on_claims(models)
        if claim not in claims
    ]


def _on_claims(models: Mapping[str, StepParams]) -> Iterator[tuple[str, str, str]]:
    """Each address on a claim, by its flag, with the claim; those that are malformed are told elsewhere."""
    from steps.claims import SCHEME, parse  # its imports would slow every --help

    for model in models.values():
        given: dict[str, list[str]] = {}
        if isinstance(model, DatasetParams):
            given["--data-uri"] = [address.uri for address in addresses.split(model.data_uri)]
            given["--eval-uri"] = [address.uri for address in addresses.split(model.eval_uri)]
        elif isinstance(model, TrainParams):
            given["--model"] = [model.model]
        elif isinstance(model, EvaluateParams):
            given["--evaluate-model"] = [model.model]
        for flag, uris in given.items():
            for uri in uris:
                if uri.startswith(SCHEME):
                    with contextlib.suppress(UsageError):
                        yield flag, uri, parse(uri)[0]
