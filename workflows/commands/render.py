"""`sft render`: the pipeline as manifests for a cluster."""

import argparse
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from steps import flags
from steps.errors import UsageError
from steps.params import type_name
from workflows import settings as settings_file
from workflows.settings import Settings

SETTINGS = Path("sft.yaml")

_OWN = {
    "settings": ("FILE", "File of settings. (default: sft.yaml, where it is there)"),
    "out": ("FOLDER", "Folder to write. (default: manifests)"),
    "overlay": (
        "NAME",
        "With --stdout: base, cluster, trainer, schedule, events, hardened or single-node. Default: the "
        "base, with the schedule and the events that the settings ask for.",
    ),
}
"""Flags with a value: what stands for it, and the help."""


def main(argv: Sequence[str]) -> int:
    """Write the folder of manifests, or print one part of it for `kubectl apply -f -`."""
    parser = _parser()
    given, problems = flags.parse(parser, argv, list(parser._option_string_actions))
    if problems:
        raise UsageError("\n  ".join(problems))
    own = {name: given.pop(name) for name in [*_OWN, "output", "stdout", "set"] if name in given}
    pairs = _pairs(own.get("set", []))
    called = {name: flags.flag(name) for name in given} | {name: f"--set {name}" for name in pairs}
    settings = settings_file.read(_file(own), given | pairs, called)

    from workflows import documents, manifests  # Hera loads here, so --help stays instant

    if "stdout" in own and "out" in own:
        raise UsageError("--stdout and --out: leave one of them out")
    if "stdout" not in own:
        if useless := [flags.flag(name) for name in ("overlay", "output") if name in own]:
            raise UsageError(
                f"{' and '.join(useless)}: only with --stdout; the folder is whole, and YAML"
            )
        out = Path(own.get("out", "manifests"))
        texts = manifests.tree(settings)
        try:
            manifests.write(out, texts)
        except (PermissionError, NotADirectoryError, FileNotFoundError, FileExistsError) as error:
            raise UsageError(f"--out: {error.filename}: {error.strerror}") from error
        for line in _ways_to_apply(out, texts, settings):
            print(f"sft: {line}", file=sys.stderr)  # noqa: T201
        return 0
    writers = {"yaml": documents.to_yaml, "json": documents.to_json}
    output = own.get("output", "yaml")
    if output not in writers:
        raise UsageError(f"--output: {output!r} is neither yaml nor json")
    sys.stdout.write(writers[output](manifests.part(settings, own.get("overlay"))))
    return 0


def _ways_to_apply(out: Path, texts: Collection[str], settings: Settings) -> Iterator[str]:
    """What to do with the folder; which of its parts a cluster takes depends on the cluster."""
    from workflows import access, manifests

    def apply(part: str) -> str:
        return f"kubectl apply --server-side -k {shlex.quote(f'{out}/{part}')}"

    there = [path.removesuffix("/kustomization.yaml") for path in texts]
    parts = [part for part in ("cluster", "trainer", "base") if part in there]
    yield f"{out} is written; {', then '.join(map(apply, parts))}"
    more = [part for part in map("overlays/{}".format, manifests.OVERLAYS) if part in there]
    yield f"in place of base, the same and more: {', '.join(more)}"
    alone = "after cluster" if settings.namespace else "nothing but"
    yield f"on one node without a GPU, {alone}: {apply('overlays/single-node')}"
    if "trainer" in there and not settings.namespace:
        role, account = settings.named(access.RUNTIMES), settings.named(access.TRAIN)
        yield (
            f"without a namespace, {role} is bound by hand: kubectl create clusterrolebinding "
            f"{role}-NAMESPACE --clusterrole={role} --serviceaccount=NAMESPACE:{account}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="sft render",
        usage="sft render [--settings FILE] [--out FOLDER | --stdout] [options]",
        description="Render the pipeline for a cluster: a WorkflowTemplate and what goes with it.",
    )
    group = parser.add_argument_group("what to write")
    flags.add_own(group, _OWN)
    group.add_argument(
        *("-o", "--output"),
        metavar="yaml|json",
        default=argparse.SUPPRESS,
        help="With --stdout: how it is written. (default: yaml)",
    )
    group.add_argument(
        "--stdout",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Print instead: sft render --stdout | kubectl apply --server-side -f -",
    )
    over = parser.add_argument_group("settings, over those of the file")
    for name, field in Settings.model_fields.items():
        if type_name(field) in ("str", "int") and isinstance(field.default, str | int):
            flags.add(over, name, field)
    over.add_argument(
        "--set",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="Any setting by its dotted name: --set images.registry=quay.io/team",
    )
    return parser


def _file(own: dict[str, Any]) -> Path | None:
    if "settings" in own:
        return Path(own["settings"])
    return SETTINGS if SETTINGS.exists() else None


def _pairs(given: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE`, each; lists and groups as YAML writes them in one line."""
    import yaml

    from workflows import documents

    found: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--set: {pair!r} is not NAME=VALUE")
        try:
            found[name] = yaml.safe_load(text) if text.startswith(("[", "{")) else text
        except yaml.YAMLError as error:
            raise UsageError(f"--set {name}: {documents.fault(error)}") from error
    return found
