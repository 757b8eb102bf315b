"""hf://org/name[:config][@revision][#split]: data sets of the Hugging Face Hub.

`datasets` says which files a configuration and split consist of; the files are then read by our
own reader, because Arrow would fill tool calls with nulls. All is pinned to one commit.
"""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from pydantic import SecretStr

from steps import files, hub_errors
from steps.dataset.sources import (
    DataFile,
    Fetched,
    for_training,
    is_data,
    is_held_out,
    is_pattern,
    matches,
)
from steps.entrypoint import Run
from steps.errors import (
    DataError,
    StepError,
    TransientError,
    UsageError,
    volume_error,
)
from steps.progress import progress
from steps.record import Asset
from steps.retries import TryAgain, persist
from steps.secrets import hf_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

log = logging.getLogger(__name__)

T = TypeVar("T")

# https://huggingface.co/docs/huggingface_hub/guides/hf_file_system: a revision has no slash,
# but for those of pull requests and of the hub's own Parquet files.
_ADDRESS = re.compile(
    r"(?P<repository>\w[\w.-]*(/\w[\w.-]*)?)"
    r"(:(?P<config>[^@#/]+))?"
    r"(@(?P<revision>refs/(pr|convert)/[^/#]+|[^/#]+))?"
    r"(/(?P<path>[^#]+))?"
    r"(#(?P<split>.+))?"
)


@dataclass(frozen=True)
class Address:
    """What stands in an hf:// address."""

    repository: str
    config: str | None
    revision: str | None
    path: str | None
    """A file, folder or pattern in the repository, as the hub's own addresses name it."""
    split: str | None

    @classmethod
    def parse(cls, uri: str) -> "Address":
        """Raises UsageError where the address is none."""
        inside = uri.removeprefix("hf://").removeprefix("datasets/").removesuffix("/")
        found = _ADDRESS.fullmatch(inside)
        if found is None or (
            # A path without a scheme is more likely one of this machine.
            found["path"] and (found["config"] or found["split"] or "://" not in uri)
        ):
            raise UsageError(
                f"{uri}: write hf://org/name[:config][@revision][#split] or "
                f"hf://datasets/org/name[@revision]/path"
            )
        parts = ("repository", "config", "revision", "path", "split")
        values = {part: found[part] for part in parts}
        # The hub's own addresses have the slash of a branch's name as %2F.
        values["revision"] = values["revision"] and unquote(values["revision"])
        return cls(**values)


class Hub:
    """A data set of the hub, at one commit."""

    def __init__(self, uri: str, token: SecretStr, run: Run) -> None:
        self.uri, self.run = uri, run
        self.address = Address.parse(uri)
        self.name = f"hf://{self.address.repository}"
        # None lets the hub's client look for the token of `hf auth login`.
        self.token = hf_token(token) or None

    def asset(self) -> Asset:
        """The address: which commit it stands for is fixed by the run that downloads it."""
        return Asset(uri=self.uri)

    def check(self) -> list[DataFile]:
        """The data set, its configuration and split are there, and we may have its files."""
        with tempfile.TemporaryDirectory(prefix="sft-check-") as folder:
            self._keep_caches_in(Path(folder))
            self._files()
        return []

    def fetch(self, into: Path) -> Fetched:  # noqa: ARG002  # the cache serves all runs
        """The files, in the cache that all runs share, checked against the hub's checksums."""
        cache = self.run.cache / "hub"
        self._keep_caches_in(cache)
        listed = self._files()
        fetched = []
        with progress("downloading", sum(file.size for file in listed), "bytes") as shown:
            done = 0
            for file in listed:
                fetched.append(self._download(file, cache))
                shown.update(done := done + file.size)
        return Fetched(tuple(fetched), self._commit)

    @staticmethod
    def _keep_caches_in(cache: Path) -> None:
        """The libraries read these when they are imported; a pod's home may not be writable."""
        os.environ["HF_HUB_CACHE"] = str(cache)
        os.environ["HF_DATASETS_CACHE"] = str(cache / ".datasets")

    @cached_property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    @cached_property
    def _commit(self) -> str:
        """The commit that the revision (main, a branch, a tag) stands for now."""
        info = self._ask(
            lambda: self._api.dataset_info(self.address.repository, revision=self.address.revision)
        )
        return str(info.sha)

    def _files(self) -> "list[RepoFile]":
        """The files to read, as the hub lists them."""
        from huggingface_hub import RepoFile, get_hf_file_metadata, hf_hub_url

        commit = self._commit
        tree = self._ask(
            lambda: list(
                self._api.list_repo_tree(
                    self.address.repository, recursive=True, revision=commit, repo_type="dataset"
                )
            )
        )
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        if not files:
            raise DataError(f"{self.name}: there is no file in it at commit {commit}")
        # Anyone may list a gated data set; and what `datasets` says of one hides the cause.
        url = hf_hub_url(
            self.address.repository, next(iter(files)), repo_type="dataset", revision=commit
        )
        self._ask(lambda: get_hf_file_metadata(url, token=self.token))
        names = self._below(files) if self.address.path else self._split(commit)
        return [files[name] for name in names]

    def _below(self, files: Iterable[str]) -> list[str]:
        path = (self.address.path or "").rstrip("/")
        if path in files:
            return [path]
        found = sorted(name for name in files if matches(name, path)) if is_pattern(path) else []
        if not found:  # a folder, whose name may have such characters in it
            inside = (name for name in files if name.startswith(f"{path}/") and is_data(name))
            found = for_training(inside)
        if not found:
            raise DataError(f"{self.name}: there is no {path} at commit {self._commit}")
        return found

    def _split(self, commit: str) -> list[str]:
        """The files of the split, as the data set's card and its folders tell them."""
        splits = self._splits(commit)
        asked = self.address.split
        if asked and asked not in splits:
            raise DataError(f"{self.name}: there is no split {asked!r}, but {_listed(splits)}")
        chosen = asked or _meant_for_training(splits, self.name)
        if not asked and chosen != "train":
            log.info("%s: no split is named train; taking %s", self.name, chosen)
        prefix = f"hf://datasets/{self.address.repository}@{commit}/"
        # Files of other data sets may be listed, but cannot be pinned with this one's commit.
        strange = [url for url in splits[chosen] if not url.startswith(prefix)]
        if strange:
            raise DataError(
                f"{self.name}: its file {strange[0]} lies outside of it; name it instead"
            )
        return [url.removeprefix(prefix) for url in splits[chosen]]

    def _splits(self, commit: str) -> Mapping[str, list[str]]:
        import datasets

        # With the commit for a revision, nothing can change between this and the download.
        load = datasets.load_dataset_builder
        builder = self._ask(
            lambda: load(
                # Written out, so that a folder of this name where we stand is not taken for it.
                f"hf://datasets/{self.address.repository}",
                name=self.address.config,
                revision=commit,
                token=self.token,
                cache_dir=os.environ["HF_DATASETS_CACHE"],
            )
        )
        found = builder.config.data_files or {}
        return {str(split): [str(url) for url in urls] for split, urls in found.items()}

    def _download(self, file: "RepoFile", cache: Path) -> DataFile:
        name = f"{self.name}/{file.path}"
        for attempt in range(2):
            path = self._fetched(file, cache, force=attempt > 0)
            wrong, sha256 = _verify(path, file)
            if not wrong:
                return DataFile(name, path, sha256, file.blob_id)
            log.warning("%s: corrupt: %s", name, wrong)
        raise DataError(
            f"{name}: corrupt: {wrong}, twice; the hub serves other bytes than it lists"
        )

    def _fetched(self, file: "RepoFile", cache: Path, *, force: bool) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own

        try:
            return Path(
                hf_hub_download(
                    self.address.repository,
                    file.path,
                    repo_type="dataset",
                    revision=self._commit,
                    cache_dir=cache,
                    token=self.token,
                    force_download=force,
                )
            )
        # The client has tried several times.
        except (HTTPError, OSError, ValueError) as error:
            if volume_error(error):
                raise
            if "Consistency check failed" in str(error):  # goes on with the link and its signature
                raise TransientError(
                    f"{self.name}/{file.path}: the hub sends fewer or more bytes than it lists "
                    f"({file.size:,}); run the same command again later"
                ) from None
            told = self._told(error)
            if isinstance(told, TryAgain):
                told = TransientError(
                    f"{self.name}/{file.path}: {told}; run the same command again"
                )
            raise told from error

    def _ask(self, question: Callable[[], T]) -> T:
        """The hub's answer; asked again while the hub is not able to answer."""
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own

        def attempt() -> T:
            try:
                return question()
            except (HTTPError, OSError, ValueError, RuntimeError) as error:
                if volume_error(error):
                    raise
                raise self._told(error) from error

        return persist(attempt, self.name)

    def _told(self, error: Exception) -> StepError | TryAgain:
        """What an error of the hub's client or of `datasets` means here."""
        from huggingface_hub import constants

        told = hub_errors.told(
            error,
            self.name,
            kind="data set",
            page=f"{constants.ENDPOINT}/datasets/{self.address.repository}",
            revision=self.address.revision,
            token=self.token or "",
        )
        if told:
            return told
        said = " ".join(str(error).split())
        hint = ""
        if "script" in said:
            hint = "; its files as the hub converted them may do: @refs/convert/parquet"
        elif "Config name is missing" in said or "BuilderConfig" in said:
            hint = f"; name one: {self.name}:<config>"
        return DataError(f"{self.name}: {said}{hint}")


def _meant_for_training(splits: Mapping[str, list[str]], name: str) -> str:
    """`train`, or the one split whose name says training. Raises DataError where that is unclear."""
    training = [split for split in splits if split.startswith("train") and not is_held_out(split)]
    # ultrachat_200k has train_sft beside train_gen, as sets for several kinds of training do.
    for wanted in ("train", "train_sft"):
        if wanted in training:
            return wanted
    if len(training) != 1:
        raise DataError(
            f"{name}: no split is named train; it has {_listed(splits)}; "
            f"say which one to train on: {name}#<split>"
        )
    return training[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _verify(path: Path, file: "RepoFile") -> tuple[str, str]:
    """What is wrong with the bytes (empty if nothing), and their sha256.

    The hub's client compares sizes alone. The hub lists the sha256 of large files, and of small
    ones git's ID, which is the sha1 of a header and the content.
    """
    sha256 = files.sha256(path)
    found, listed = (sha256, file.lfs.sha256) if file.lfs else (files.git_blob(path), file.blob_id)
    wrong = "" if found == listed else f"its checksum is {found}, the hub lists {listed}"
    return wrong, sha256
