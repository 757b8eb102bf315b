"""What a base model is: the files that make one up, and how records name it."""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from steps.errors import DataError
from steps.record import Asset
from steps.workspace import Workspace

Read = Callable[[str], str]
"""The text of one of the model's files, by name."""


@dataclass(frozen=True)
class ModelSource:
    """A base model that lies here, whole."""

    uri: str
    """As records name it."""
    path: Path
    revision: str | None = None
    """Commit of the hub, or digest of the image."""
    sha256: str | None = None
    """Digest of a folder, as `steps.files.digest` makes it."""
    portable: bool = False
    """It lies in the workspace or the cache, so records name it relative to the workspace."""

    def asset(self, workspace: Workspace) -> Asset:
        """The model as the record of a step names it."""
        path = os.path.relpath(self.path, workspace.root) if self.portable else str(self.path)
        return Asset(path=path, uri=self.uri, revision=self.revision, sha256=self.sha256)


class Examined(NamedTuple):
    """A base model that was looked into."""

    folder: Path
    """Where its config and tokenizer can be read, as long as this process lives."""
    path: Path
    """Where it lies once it is fetched."""


class Source(Protocol):
    """A place that base models come from."""

    def at(self, revision: str) -> "Source":
        """The same model at a fixed revision."""

    def check(self) -> Examined | None:
        """The model's config and tokenizer, in seconds; no weights are fetched.

        None where they show only once all is fetched: an image that is not in the cache. Raises
        the StepErrors that `fetch` would raise.
        """

    def fetch(self) -> ModelSource:
        """Bring the model here, once.

        Raises DataError where it is missing or no causal language model, CredentialsError where it
        is not for us, TransientError where nobody answers.
        """


def examine(where: str, names: Collection[str], read: Read) -> None:
    """Check that files make up a causal language model; the weights themselves are not read.

    Raises DataError that names all that is missing, or the architecture that cannot be trained.
    """
    missing = []
    if "config.json" not in names:
        missing.append("config.json")
    if not {"tokenizer.json", "tokenizer.model"} & set(names):
        missing.append("tokenizer (tokenizer.json or tokenizer.model)")
    missing += _missing_weights(where, names, read)
    if missing:
        advice = (
            "it is an adapter: merge it into its base model"
            if "adapter_config.json" in names
            else "name a model in Hugging Face format"
        )
        raise DataError(
            f"{where}: not a whole model, for it has no {', no '.join(missing)}; {advice}"
        )
    _check_architecture(where, _json(where, "config.json", read))


def _missing_weights(where: str, names: Collection[str], read: Read) -> list[str]:
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = f"{whole}.index.json"
        if whole in names:
            return []
        if index in names:
            shards = set(_json(where, index, read).get("weight_map", {}).values())
            return [f"{shard} (named in {index})" for shard in sorted(shards - set(names))]
    return ["weights (model.safetensors or pytorch_model.bin, or an index of either)"]


def _check_architecture(where: str, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return
    # Some have other names; only transformers knows them, and its import takes seconds.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        named = ", ".join(architectures) or "nothing"
        raise DataError(
            f"{where}: config.json says {named} under architectures, which is no causal language "
            "model; only those can be fine-tuned on chats"
        )


def _json(where: str, name: str, read: Read) -> dict[str, Any]:
    try:
        content = json.loads(read(name))
    except ValueError as error:
        raise DataError(f"{where}: {name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: {name} holds no JSON object")
    return content
