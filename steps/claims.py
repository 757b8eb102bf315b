"""pvc://<claim>/<path>: files on claims, where the engine has mounted them.

A claim lies at `<claims>/<claim>`; the one that holds the run's own workspace is found from that.
"""

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from steps.entrypoint import Run
from steps.errors import DataError, UsageError

SCHEME = "pvc://"

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def locate(uri: str, run: Run) -> Path:
    """The file or folder that a pvc:// address names, with its links resolved.

    Raises UsageError where the address is malformed or the claim is not mounted, DataError where
    nothing is there or where it leads, by a link, out of the claim.
    """
    claim, parts = parse(uri)
    mounts = mounted(run)
    if claim not in mounts:
        listed = ", ".join(sorted(mounts)) or "none"
        raise UsageError(
            f"{uri}: the claim {claim!r} is not mounted (mounted under {run.bound.claims} or as the "
            f"run's own volume: {listed}); mount it at {run.bound.claims / claim}"
        )
    root = mounts[claim].resolve()
    path = root.joinpath(*parts)
    if not path.exists():
        raise DataError(f"{uri}: there is no {path}")
    for entry in chain([path], _links(path)):
        target = Path(os.path.realpath(entry))  # resolve() fails at a link to itself
        if not target.is_relative_to(root):
            raise DataError(
                f"{uri}: a link leads out of the claim: {entry} is {target}; "
                "put the file itself on the claim"
            )
    return path.resolve()


def parse(uri: str) -> tuple[str, list[str]]:
    """The claim, and the parts of the path on it; UsageError where the address is malformed."""
    claim, _, inside = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not _CLAIM.fullmatch(claim):
        raise UsageError(f"{uri!r}: not an address on a claim; write pvc://<claim>/<path>")
    parts = [part for part in inside.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{uri}: '..' may not lead out of the claim; write the path without it")
    return claim, parts


def mounted(run: Run) -> dict[str, Path]:
    """Where each claim is mounted: those under `--claims`, and the run's own volume."""
    found: dict[str, Path] = {}
    if run.bound.claims.is_dir():
        found = {entry.name: entry for entry in run.bound.claims.iterdir() if entry.is_dir()}
    workspace, inside = run.workspace.root, Path(run.bound.volume_path.strip("/")).parts
    if run.bound.volume_claim and workspace.parts[len(workspace.parts) - len(inside) :] == inside:
        found[run.bound.volume_claim] = (workspace, *workspace.parents)[len(inside)]
    return found


def _links(folder: Path) -> Iterator[Path]:
    """All links below the folder; none for a file."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            entry = Path(parent, name)
            if entry.is_symlink():
                yield entry
