"""Base models: a Hugging Face ID, a path, pvc://<claim>/<path>, or an oci:// image.

Each is fetched once into the cache that runs share, and pinned for the run: what a name means
today decides, whatever it means when a stopped run goes on.
"""

import json
from collections.abc import Callable
from pathlib import Path

from steps import claims, files
from steps.base_model import hub
from steps.base_model.folder import Folder
from steps.base_model.hub import HubModel
from steps.base_model.model import Examined, ModelSource, Source
from steps.base_model.modelcar import Modelcar, Reference
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.record import Asset
from steps.workspace import Workspace

__all__ = ["Examined", "ModelSource", "check", "pinned", "refuse_what_no_pod_can_read", "resolve"]

_FROM_HERE = (".", "~")
"""Begin a path from where the user stands; no ID of the hub begins so."""


def resolve(uri: str, run: Run, *, hf_token: str, pull_secret: str = "") -> ModelSource:
    """The base model, fetched and checked.

    Raises UsageError for a name that can be none, DataError where there is no such model or it
    cannot be trained, CredentialsError where it is not for us, TransientError where nobody
    answers, ConfigError where what fetches it is missing or set up wrongly.
    """
    return _source(uri, run, hf_token, pull_secret).fetch()


def refuse_what_no_pod_can_read(uri: str) -> None:
    """Raise the UsageError that `resolve` would raise in a pod; nothing of this machine is looked at."""
    if uri.startswith(_FROM_HERE):
        raise UsageError(
            f"{uri}: a relative path, which leads nowhere in a pod: write the absolute path there"
        )
    _opener(uri, "", "")


def check(uri: str, run: Run, *, hf_token: str, pull_secret: str = "") -> Examined | None:
    """The base model's config and tokenizer, in seconds; no weights are fetched.

    None where they show only once all is fetched. Raises what `resolve` would raise, as far as it shows without them.
    """
    return _source(uri, run, hf_token, pull_secret).check()


def pinned(uri: str, run: Run, *, hf_token: str, pull_secret: str = "") -> Asset:
    """The base model of this run, fetched; once found, it stays at its revision.

    Raises what `resolve` raises.
    """
    workspace, source = run.workspace, _source(uri, run, hf_token, pull_secret)
    if revision := _pin(workspace, uri):
        source = source.at(revision)
    found = source.fetch()
    if found.revision:
        content = json.dumps({"model": uri, "revision": found.revision})
        files.write(workspace.base_model, content)
    return found.asset(workspace)


def _pin(workspace: Workspace, uri: str) -> str | None:
    """The revision that this run has found for the name before."""
    if not workspace.base_model.exists():
        return None
    pin: dict[str, str] = json.loads(workspace.base_model.read_bytes())
    return pin["revision"] if pin["model"] == uri else None


def _source(uri: str, run: Run, hf_token: str, pull_secret: str) -> Source:
    path = files.from_here(uri)
    if "://" not in uri and (uri.startswith(_FROM_HERE) or path.exists()):
        return _folder(str(path), path, run)
    return _opener(uri, hf_token, pull_secret)(run)


def _opener(uri: str, hf_token: str, pull_secret: str) -> Callable[[Run], Source]:
    """What opens the model where it is to be read; UsageError where the address is none anywhere."""
    scheme, separator, rest = uri.partition("://")
    if uri.startswith("/"):
        return lambda run: _folder(uri, Path(uri), run)
    if scheme == "pvc":
        claims.parse(uri)
        return lambda run: _folder(uri, claims.locate(uri, run), run)
    if scheme == "oci":
        reference = Reference.parse(uri)
        return lambda run: Modelcar(uri, reference, pull_secret, run.cache / "oci")
    if scheme == "hf" or not separator:
        repository, revision = hub.parse(rest if separator else uri)
        return lambda run: HubModel(repository, revision, hf_token, run.cache / "hub")
    raise UsageError(
        f"{uri!r}: no models come by {scheme}://; give a Hugging Face ID, a path, pvc:// or oci://"
    )


def _folder(uri: str, path: Path, run: Run) -> Folder:
    shared = (run.workspace.root, run.cache)
    return Folder(uri, path, portable=any(path.is_relative_to(folder) for folder in shared))
