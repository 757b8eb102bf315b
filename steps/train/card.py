"""The README.md of a tuned model: what it was made from, in Hugging Face's model card format."""

import json
import re
from collections.abc import Mapping
from typing import Any

from steps import addresses

# A repository of the hub as the steps' parameters write it; scheme, config, revision and split may be there.
_HUB = re.compile(
    r"(?:hf://)?(?:datasets/)?(?P<id>\w[\w.-]*(?:/\w[\w.-]*)?)(?::[^/@#]*)?(?:@[^#]*)?(?:#.*)?"
)
# What Markdown or HTML would act on; an underscore inside a word is none.
_ACTIVE = re.compile(r"([\\`*{}\[\]<>#|~&]|(?<!\w)_|_(?!\w))")


def model_card(
    *,
    name: str,
    base_model: str,
    base_revision: str | None,
    data_uri: str,
    data_sha256: str,
    rows: int,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
) -> str:
    """The card as Markdown under its YAML front matter.

    The front matter names the base model and the data set only where they are the hub's: it
    refuses any other address (https://huggingface.co/docs/hub/model-cards). The card is part of
    the model's digest, so it has no times in it.
    """
    base_id = _hub_id(base_model)
    data_ids = [found for uri, _ in addresses.split(data_uri) if (found := _hub_id(uri))]
    front = [
        *([f"base_model: {json.dumps(base_id)}"] if base_id else []),
        *([f"datasets: {json.dumps(data_ids)}"] if data_ids else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [sft]",
    ]
    sources = {
        "Base model": base_model,
        "Base model revision": base_revision,
        "Data set": data_uri,
        "SHA-256 of the training rows": data_sha256,
        "Rows trained on": rows,
    }
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {_text(name)}",
            "",
            "A chat model, made by supervised fine-tuning of the base model below.",
            "",
            *_table("Made from", sources),
            *_table("Training", metrics),
            *_table("Parameters", parameters),
            *_table("Versions", versions),
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'answer = pipeline("text-generation", model=".")  # the folder of this file',
            'print(answer([{"role": "user", "content": "Hello!"}]))',
            "```",
            "",
        ]
    )


def _hub_id(uri: str) -> str | None:
    found = _HUB.fullmatch(uri)
    return found["id"] if found else None


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    shown = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    if not shown:
        return []
    rows = [f"| {_text(name)} | {_text(value)} |" for name, value in shown.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _text(value: object) -> str:
    """The value on one line, shown by Markdown as it is."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif not isinstance(value, str):
        value = json.dumps(value)
    return _ACTIVE.sub(r"\\\1", " ".join(value.split()))
