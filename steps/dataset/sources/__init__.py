"""Where rows come from: one module a source, behind one small interface."""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from steps import addresses, claims, files, logs
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


@dataclass(frozen=True)
class Opened:
    """A source that the parameters name, and what its rows are for."""

    source: Source
    uri: str
    """As messages name it: without secrets."""
    weight: str = ""
    """Its share of the mix, a decimal number; empty where all rows are taken."""
    held_out: bool = False
    """Whether it is an eval set."""


def open_sources(params: DatasetParams, run: Run) -> dict[str, Opened]:
    """All sources, each by the name of its input; those of the eval set come first.

    Raises UsageError where an address is none, or does not go with the others.
    """
    data, held_out = _addresses(params)
    return {
        name: Opened(_open(uri, params, run), logs.public_uri(uri), weight, listed is held_out)
        for title, listed in (("eval_source", held_out), ("source", data))
        for name, (uri, weight) in zip(_names(title, len(listed)), listed, strict=True)
    }


def refuse_what_no_pod_can_read(params: DatasetParams) -> None:
    """Raise the UsageError that `open_sources` would raise in a pod; nothing of this machine is looked at."""
    for uri, _ in chain(*_addresses(params)):
        if _is_bare(uri) and _DATA.search(uri):
            raise UsageError(
                f"{uri}: a relative path, which leads nowhere in a pod: write the absolute path of a "
                "file there, or pvc://<claim>/<path>, or hf://org/name for a data set of the hub"
            )
        _opener(uri, params)


def _addresses(params: DatasetParams) -> tuple[list[addresses.Address], list[addresses.Address]]:
    """Those of the data and those of the eval set, which go together."""
    untouched = (DatasetParams.model_fields["data_split"].default, 1.0)
    if params.eval_uri.strip() and params.data_split not in untouched:
        raise UsageError(
            f"--data-split {params.data_split}: has no effect with --eval-uri, which gives the "
            "held-out rows; leave one of them out"
        )
    data = addresses.split(params.data_uri)
    held_out = addresses.split(params.eval_uri)
    if not data:
        raise UsageError("--data-uri: there is no address in it")
    if any(weight for _, weight in held_out):
        raise UsageError("--eval-uri: an eval set is taken whole: leave the weights out")
    if len({bool(weight) for _, weight in data}) > 1:
        missing = next(uri for uri, weight in data if not weight)
        raise UsageError(
            f"--data-uri: {logs.public_uri(missing)} has no weight: give one to each address, or to none"
        )
    for uri, weight in data:
        if weight and not float(weight):
            raise UsageError(f"--data-uri: {logs.public_uri(uri)} has the weight 0: leave it out")
    for flag, listed in (("--data-uri", data), ("--eval-uri", held_out)):
        for uri, times in Counter(uri for uri, _ in listed).items():
            if times > 1:
                raise UsageError(f"{flag}: {logs.public_uri(uri)} is named {times} times")
    return data, held_out


def _names(title: str, number: int) -> list[str]:
    return [title] if number == 1 else [f"{title}_{i}" for i in range(1, number + 1)]


def _is_bare(uri: str) -> bool:
    """Whether it has no scheme and is no absolute path: an ID of the hub, or a slip."""
    return "://" not in uri and not uri.startswith("/")


def _open(uri: str, params: DatasetParams, run: Run) -> Source:
    if _is_bare(uri):
        _refuse_what_lies_here(uri)
    return _opener(uri, params)(run)


def _opener(uri: str, params: DatasetParams) -> Callable[[Run], Source]:
    """What opens the source where it is to be read; UsageError where the address is none anywhere."""
    scheme, separator, _ = uri.partition("://")
    if uri.startswith("/") or scheme == "pvc":
        from steps.dataset.sources.local import Local

        if scheme == "pvc":
            claims.parse(uri)
        return partial(Local, uri)
    if scheme in ("http", "https"):
        from steps.dataset.sources import http

        http.parse(uri)
        return lambda _: http.Http(uri)
    if scheme == "s3":
        from steps.dataset.sources.s3 import S3

        bucket = S3(uri, params.s3_auth)
        return lambda _: bucket
    if scheme == "hf" or not separator:
        from steps.dataset.sources import hub

        hub.Address.parse(uri)
        return partial(hub.Hub, uri, params.hf_token)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise UsageError(
        f"{scheme}://...: no source for the scheme {scheme!r}; there are {known} and absolute paths"
    )


def _refuse_what_lies_here(uri: str) -> None:
    """A name without a scheme is the hub's; who has such a file here has likely meant that."""
    path = files.from_here(uri)
    if path.exists():
        raise UsageError(
            f"{uri}: lies here, but without a scheme it names a data set of the hub: write "
            f"{path} for what lies here, or hf://{uri} for the hub's"
        )
    if _DATA.search(uri):
        raise UsageError(
            f"{uri}: there is no such file ({path}); without a scheme it would name a data "
            f"set of the hub: write the file's absolute path, or write hf://org/name"
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


def is_held_out(name: str) -> bool:
    """Whether the name has a word in it that says: to measure with."""
    return _HELD_OUT.search(name) is not None


def for_training(names: Iterable[str]) -> list[str]:
    """The names meant for training, where the names of a folder tell splits apart; else all.

    Whoever named a file `test` wants to measure with it, not to train on it.
    """
    every = sorted(names)
    held_out = {name for name in every if is_held_out(name) and not _TRAINING.search(name)}
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
