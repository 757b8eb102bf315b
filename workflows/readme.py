"""The tables of the documents that are derived from the code; `make format` renews them.

python -m workflows.readme
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from steps.flags import as_text, shown_default
from steps.params import CLUSTER, choices, marked, type_name
from workflows.pipeline import SFT
from workflows.settings import Settings, group_of

EMPTY = '""'
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "docs" / "argo.md")


def main() -> int:
    """Renew the documents in place; say which changed."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        new = renewed(text)
        if new != text:
            document.write_text(new, encoding="utf-8")
            print(f"{document.name} renewed")  # noqa: T201
    return 0


def renewed(text: str) -> str:
    """A document with each part between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, part in _PARTS.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, part=part: f"{found[1]}{part()}{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def parameters() -> str:
    """The table of all workflow parameters."""
    rows = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
    for parameter in SFT.parameters():
        field = parameter.field
        meaning = " ".join((field.description or "").split()).replace("|", r"\|")
        if marked(field, CLUSTER):
            meaning += " *Cluster.*"
        default = "required" if field.is_required() else f"`{shown_default(field) or EMPTY}`"
        rows.append(f"| `{parameter.name}` | {type_name(field)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def secrets() -> str:
    """The table of the Kubernetes Secrets."""
    steps: dict[str, list[str]] = {}
    found = {}
    for step in SFT.steps:
        for secret in step.secrets:
            found[secret.name] = secret
            steps.setdefault(secret.name, []).append(step.name)
    rows = ["| secret | keys | steps | needed for |", "|---|---|---|---|"]
    for name, secret in found.items():
        keys = ", ".join(f"`{key}`" for key in secret.keys) or "any"
        rows.append(f"| `{name}` | {keys} | {', '.join(steps[name])} | {secret.purpose} |")
    return "\n".join(rows) + "\n"


def settings() -> str:
    """The table of all settings of a cluster, those of a group by their dotted names."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*rows, *_settings(Settings, "")]) + "\n"


def _settings(group: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in group.model_fields.items():
        inner = group_of(field.annotation)
        if inner is not None:
            about = " ".join((field.description or inner.__doc__ or "").split())
            yield f"| **`{prefix}{name}`** | | | {about} |"
            yield from _settings(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_default(field)}`"
        meaning = " ".join((field.description or "").split()).replace("|", r"\|")
        yield f"| `{prefix}{name}` | {_kind(field)} | {default} | {meaning} |"


def _kind(field: FieldInfo) -> str:
    limited = choices(field)
    return ", ".join(limited) if limited else type_name(field)


def _default(field: FieldInfo) -> str:
    value = TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")
    return as_text(value) or EMPTY


_PARTS: dict[str, Callable[[], str]] = {
    "parameters": parameters,
    "secrets": secrets,
    "settings": settings,
}


if __name__ == "__main__":
    sys.exit(main())
