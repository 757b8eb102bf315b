"""The tables of the README that are derived from the code; `make format` renews them.

python -m workflows.readme
"""

import re
import sys
from pathlib import Path

from steps.flags import shown_default
from steps.params import CLUSTER, marked, type_name
from workflows.pipeline import SFT

EMPTY = '""'
README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    """Renew the README in place; say whether it changed."""
    text = README.read_text(encoding="utf-8")
    new = renewed(text)
    if new != text:
        README.write_text(new, encoding="utf-8")
        print("README.md renewed")  # noqa: T201
    return 0


def renewed(text: str) -> str:
    """The README with each part between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, part in {"parameters": parameters(), "secrets": secrets()}.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, part=part: f"{found[1]}{part}{found[2]}",  # type: ignore[misc]
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


if __name__ == "__main__":
    sys.exit(main())
