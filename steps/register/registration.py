"""Makes the registry hold a release: looks first at what is there, and sends only what is missing."""

import itertools
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from steps.errors import DataError, TransientError
from steps.register.release import Release, held_digest

if TYPE_CHECKING:
    from model_registry.types import ModelVersion

    from steps.register.registry import Registry

log = logging.getLogger(__name__)

Status = Literal["registered", "unchanged", "repaired", "skipped"]

_WAYS_OUT = (
    "choose another with --version (phase_04_registry_man_version), or take the next free patch "
    "version with --on-conflict increment (phase_04_registry_opt_on_conflict)"
)


@dataclass(frozen=True)
class Registration:
    """What was, or would be, registered: the contents of registration.json."""

    status: Status
    registry: str
    """Address of the registry; empty where there is none."""
    name: str
    version: str
    uri: str
    ids: dict[str, str]
    """IDs that the registry gave: registered_model, model_version, model_artifact."""
    properties: dict[str, str]
    metrics: dict[str, float]
    artifact: dict[str, str]
    author: str
    description: str


def skipped(release: Release) -> Registration:
    """What would have been registered."""
    return _registration("skipped", release)


def refuse_taken_version(registry: "Registry", name: str, version: str, run_name: str) -> None:
    """Raise DataError where another run has registered this version.

    Before training nobody knows the model's digest; that it was this run is the best guess then.
    """
    held = registry.version(name, version)
    if held is not None and (by := (held.custom_properties or {}).get("sft.run")) != run_name:
        raise DataError(
            f"{registry.address.url}: {name} {version} is taken"
            f"{f' by the run {by}' if by else ''}; {_WAYS_OUT}"
        )


def register(registry: "Registry", release: Release, *, increment: bool) -> Registration:
    """Register the release, or complete what is there of it; the outcome says which.

    A version that holds the same model is brought up to date: author, description, metrics and
    format, not its source, which stays who registered it first. One that holds another model is a
    DataError, or with `increment` the next patch version that is free or holds this model is used.
    """
    held = registry.version(release.name, release.version)
    if held is not None and held_digest(held.custom_properties) != release.digest:
        if not increment:
            theirs = held_digest(held.custom_properties) or "unknown: not by this pipeline"
            raise DataError(
                f"{registry.address.url}: {release.name} {release.version} holds another model "
                f"(digest {theirs}; this one's is {release.digest}); {_WAYS_OUT}"
            )
        version, held = _next_version(registry, release)
        log.info("version %s holds another model: taking %s", release.version, version)
        release = replace(release, version=version)
    if held is None:
        registry.register_model(
            release.name,
            release.uri,
            version=release.version,
            version_description=release.description or None,
            metadata={**release.properties, **release.metrics},
            **release.artifact,
        )
        status: Status = "registered"
    else:
        updated = _update_version(registry, release, held)
        completed = _complete_artifact(registry, release, held)
        status = "repaired" if updated or completed else "unchanged"
    return _read_back(registry, release, status)


def _next_version(registry: "Registry", release: Release) -> tuple[str, "ModelVersion | None"]:
    """The next patch version that holds this model already, else the next free one."""
    major, minor, rest = release.version.split(".", 2)
    patch = int(rest.partition("-")[0].partition("+")[0])
    later: dict[int, ModelVersion] = {}
    for held in registry.get_model_versions(release.name):
        prefix, _, number = held.name.rpartition(".")
        if prefix == f"{major}.{minor}" and number.isdecimal() and int(number) > patch:
            later[int(number)] = held
    for number in sorted(later):
        if held_digest(later[number].custom_properties) == release.digest:
            return later[number].name, later[number]
    free = next(number for number in itertools.count(patch + 1) if number not in later)
    return f"{major}.{minor}.{free}", None


def _update_version(registry: "Registry", release: Release, held: "ModelVersion") -> bool:
    wanted = held.model_copy(
        update={
            "author": release.author,
            "description": release.description or held.description,
            "custom_properties": {**(held.custom_properties or {}), **release.metrics},
        }
    )
    if wanted == held:
        return False
    registry.update(wanted)
    return True


def _complete_artifact(registry: "Registry", release: Release, held: "ModelVersion") -> bool:
    from model_registry.types import ModelArtifact

    assert held.id is not None
    whole = ModelArtifact(name=release.name, uri=release.uri, **release.artifact)
    stored = registry.artifact(release.name, held.id)
    if stored is None:
        registry.add_artifact(whole, held.id)
        return True
    if not stored.uri:
        registry.update(whole.model_copy(update={"id": stored.id}))
        return True
    known = ModelArtifact.from_basemodel(stored)
    wanted = known.model_copy(
        update={key: release.artifact[key] for key in ("model_format_name", "model_format_version")}
    )
    if wanted == known:
        return False
    registry.update(wanted)
    return True


def _read_back(registry: "Registry", release: Release, status: Status) -> Registration:
    held = registry.version(release.name, release.version)
    stored = registry.artifact(release.name, held.id) if held and held.id else None
    if held is None or stored is None or not stored.uri:
        raise TransientError(
            f"{registry.address.url}: {release.name} {release.version} was sent but is not there"
        )
    ids = {
        "registered_model": str(held.registered_model_id),
        "model_version": str(held.id),
        "model_artifact": str(stored.id),
    }
    log.info("%s %s: %s, %s", release.name, release.version, status, stored.uri)
    return _registration(
        status, replace(release, uri=stored.uri), registry=registry.address.url, ids=ids
    )


def _registration(
    status: Status, release: Release, *, registry: str = "", ids: dict[str, str] | None = None
) -> Registration:
    return Registration(
        status=status,
        registry=registry,
        name=release.name,
        version=release.version,
        uri=release.uri,
        ids=ids or {},
        properties=release.properties,
        metrics=release.metrics,
        artifact=release.artifact,
        author=release.author,
        description=release.description,
    )
