"""Base models: a Hugging Face ID, a path, pvc://<claim>/<path>, or an oci:// image.

Each is fetched once into the cache that runs share, and pinned for the run: what a name means
today decides, whatever it means when a stopped run goes on.
"""

import json
from pathlib import Path

from steps import claims, files
from steps.base_model.folder import Folder
from steps.base_model.hub import HubModel
from steps.base_model.model import Examined, ModelSource, Source
from steps.base_model.modelcar import Modelcar
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.record import Asset
from steps.workspace import Workspace

__all__ = ["Examined", "ModelSource", "check", "pinned", "resolve"]


def resolve(uri: str, run: Run, *, hf_token: str, pull_secret: str = "") -> ModelSource:
    """The base model, fetched and checked.

    Raises UsageError for a name that can be none, DataError where there is no such model or it
    cannot be trained, CredentialsError where it is not for us, TransientError where nobody
    answers, ConfigError where what fetches it is missing or set up wrongly.
    """
    return _source(uri, run, hf_token, pull_secret).fetch()


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
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _path_or_id(uri, run, hf_token)
    if scheme == "hf":
        return _hub_model(rest, run, hf_token)
    if scheme == "pvc":
        return _folder(uri, claims.locate(uri, run), run)
    if scheme == "oci":
        return Modelcar.of(uri, pull_secret, run.cache / "oci")
    raise UsageError(
        f"--model {uri!r}: no base models come by {scheme}://; give a Hugging Face ID, a path, "
        "pvc:// or oci://"
    )


def _path_or_id(name: str, run: Run, hf_token: str) -> Source:
    path = Path(name).expanduser()
    if path.exists() or name.startswith(("/", ".", "~")):
        return _folder(str(path.absolute()), path.absolute(), run)
    return _hub_model(name, run, hf_token)


def _folder(uri: str, path: Path, run: Run) -> Folder:
    shared = (run.workspace.root, run.cache)
    return Folder(uri, path, portable=any(path.is_relative_to(folder) for folder in shared))


def _hub_model(name: str, run: Run, hf_token: str) -> HubModel:
    repository, _, revision = name.partition("@")
    return HubModel(repository, revision or None, hf_token, run.cache / "hub")
