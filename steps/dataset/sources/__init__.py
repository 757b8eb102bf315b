"""Where rows come from: one module a source, behind one small interface."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from steps.dataset.params import DatasetParams
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.record import Asset

SCHEMES = ("hf", "s3", "http", "https", "pvc")


@dataclass(frozen=True)
class DataFile:
    """A file that lies here to be read, and what is known of it."""

    name: str
    """As messages and the record name it: without secrets."""
    path: Path
    sha256: str | None = None
    """None where nothing has read it whole yet."""
    etag: str | None = None


@dataclass(frozen=True)
class Fetched:
    """All files of a source, in an order that is always the same."""

    files: tuple[DataFile, ...]
    revision: str | None = None
    """The commit that a name was resolved to."""


class Source(Protocol):
    """A place that data comes from."""

    def asset(self) -> Asset:
        """What tells this data from another, as far as that is known without a network."""

    def check(self) -> list[DataFile]:
        """Find out whether the data can be had, and write nothing; the files that lie here already.

        Raises the StepErrors that `fetch` would raise.
        """

    def fetch(self, into: Path) -> Fetched:
        """Bring the data here. What comes from outside is put into the folder `into`.

        A folder that a stopped attempt left is completed. Raises DataError where there is no such
        data, CredentialsError where it is not for us, TransientError where nobody answers.
        """


def open_source(params: DatasetParams, run: Run) -> Source:
    """The source that `params.data_uri` names.

    Raises UsageError for a scheme that no source knows.
    """
    uri = params.data_uri.strip()
    scheme, separator, _ = uri.partition("://")
    if uri.startswith("/") or scheme == "pvc":
        from steps.dataset.sources.local import Local

        return Local(uri, run)
    if scheme in ("http", "https"):
        from steps.dataset.sources.http import Http

        return Http(uri)
    if scheme == "s3":
        from steps.dataset.sources.s3 import S3

        return S3(uri, params.s3_auth)
    if scheme == "hf" or not separator:
        from steps.dataset.sources.hub import Hub

        return Hub(uri, params.hf_token, run)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise UsageError(
        f"--data-uri {scheme}://...: no source for the scheme {scheme!r}; "
        f"there are {known} and absolute paths"
    )


_DATA = re.compile(
    r"\.(jsonl|ndjson|json|parquet|csv|tsv|arrow|feather)(\.(gz|zst|zstd))?$", re.IGNORECASE
)
# What tools write beside data: not rows.
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_TRAINING = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)", re.IGNORECASE)
_HELD_OUT = re.compile(r"(^|[^a-z])(test|testing|valid|validation|val|dev|eval)([^a-z]|$)", re.I)


def is_data(name: str) -> bool:
    """Whether a file's path says that it holds rows. Hidden files never do."""
    parts = name.split("/")
    return (
        not any(part.startswith((".", "_")) for part in parts)
        and parts[-1] not in _NOT_ROWS
        and _DATA.search(parts[-1]) is not None
    )


def for_training(names: Iterable[str]) -> list[str]:
    """The names meant for training, where the names of a folder tell splits apart; else all.

    Whoever named a file `test` wants to measure with it, not to train on it.
    """
    every = sorted(names)
    held_out = {name for name in every if _HELD_OUT.search(name) and not _TRAINING.search(name)}
    return [name for name in every if name not in held_out]


def is_pattern(path: str) -> bool:
    """Whether the path has wildcards in it."""
    return any(character in path for character in "*?[")


def matches(path: str, pattern: str) -> bool:
    """Whether the path fits the pattern: `*` stays within a folder, `**` crosses them."""
    return _fits(path.split("/"), pattern.split("/"))


def _fits(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], patterns[0])
        and _fits(parts[1:], patterns[1:])
    )
