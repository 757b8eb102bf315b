"""Base models of the Hugging Face Hub, fetched once into a cache of the hub's own layout.

The client checks the length of what it downloads, but not the bytes; here they are.
"""

import atexit
import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from steps import files
from steps.base_model.folder import Folder
from steps.base_model.model import Examined, ModelSource, examine
from steps.errors import DataError, StepError, TransientError, UsageError
from steps.hub_errors import SECRET, first_line, passing, refusal, retry_after
from steps.progress import progress
from steps.quantities import size
from steps.retries import TryAgain, persist

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

log = logging.getLogger(__name__)

T = TypeVar("T")

_PART = r"\w([\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(rf"({_PART}/)?{_PART}", re.ASCII)
_NO_REPOSITORY = re.compile(r"--|\.\.|\.git$")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Weights of other frameworks and copies of the same ones; nothing here loads them.
_OTHER_WEIGHTS = re.compile(
    r"consolidated.*|.*\.(gguf|h5|msgpack|onnx|onnx_data|ot|pkl|pt|pth|tflite|ckpt|nemo)"
)

# Config, tokenizer and chat templates, and the index of sharded weights.
_READ_FIRST = re.compile(r".*\.(jinja|json|model|tiktoken|txt)")


def parse(name: str) -> tuple[str, str | None]:
    """The repository and the revision that stand in `org/name[@revision]`.

    Raises UsageError where no repository can have the name; the hub's client has the same rules.
    """
    repository, _, revision = name.partition("@")
    if not _REPOSITORY.fullmatch(repository) or _NO_REPOSITORY.search(repository):
        raise UsageError(
            f"{name!r}: neither an existing path nor a Hugging Face ID (org/name, and @revision if "
            "need be)"
        )
    return repository, revision or None


@dataclass(frozen=True)
class HubModel:
    """A repository of models on the hub."""

    repository: str
    revision: str | None
    """Branch, tag or commit; None is the default branch."""
    token: str = field(repr=False)
    """Empty takes the one that this machine's user has stored, if any."""
    cache: Path

    def at(self, revision: str) -> "HubModel":
        """The model at a commit."""
        return replace(self, revision=revision)

    def check(self) -> Examined:
        """See Source. Config and tokenizer are fetched to a folder that ends with this process."""
        if self._is_here():
            return Folder(
                self.repository, self._snapshot(str(self.revision)), portable=True
            ).check()
        scratch = tempfile.TemporaryDirectory(prefix="sft-check-")
        atexit.register(scratch.cleanup)
        apart = replace(self, cache=Path(scratch.name))
        with apart._told():
            information = apart._information()
            apart._examine(information)
            for file in _wanted(information):
                if _READ_FIRST.fullmatch(file.rfilename):
                    apart._file(file, str(information.sha))
            commit = str(information.sha)
            return Examined(apart._snapshot(commit), self._snapshot(commit))

    def fetch(self) -> ModelSource:
        """See Source. A commit that is whole in the cache is not asked for again."""
        if self._is_here():
            return self._source(str(self.revision))
        with self._told():
            information = self._information()
            commit = str(information.sha)
            if not self._is_whole(commit):
                self._examine(information)
                self._download(information)
                wanted = "\n".join(file.rfilename for file in _wanted(information))
                files.write(self._marker(commit), wanted)
        return self._source(commit)

    def _source(self, commit: str) -> ModelSource:
        return ModelSource(self.repository, self._snapshot(commit), commit, portable=True)

    @property
    def _folder(self) -> Path:
        return self.cache / f"models--{self.repository.replace('/', '--')}"

    def _snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def _marker(self, commit: str) -> Path:
        """Lists the files of the commit that were fetched and checked; written last."""
        return self._folder / "verified" / commit

    def _is_here(self) -> bool:
        """Whether the revision is a commit that was fetched before: then nobody need be asked."""
        commit = self.revision or ""
        return bool(_COMMIT.fullmatch(commit)) and self._is_whole(commit)

    def _is_whole(self, commit: str) -> bool:
        marker = self._marker(commit)
        return marker.exists() and all(
            (self._snapshot(commit) / name).exists() for name in marker.read_text().splitlines()
        )

    def _information(self) -> "ModelInfo":
        from huggingface_hub import HfApi, get_token

        if not (self.token or get_token()):
            log.warning(
                "no Hugging Face token: gated and private models are refused without %s", SECRET
            )
        return persist(
            lambda: self._ask(
                lambda: HfApi().model_info(
                    self.repository,
                    revision=self.revision,
                    files_metadata=True,
                    timeout=30,
                    token=self.token or None,
                )
            ),
            self.repository,
        )

    def _ask(self, question: Callable[[], T]) -> T:
        """The hub's answer; TryAgain where the failure may pass."""
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own

        try:
            return question()
        except HTTPError as error:
            if reason := passing(error):
                raise TryAgain(reason, retry_after(error)) from error
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the client, raised as those of a step."""
        from huggingface_hub import errors

        try:
            yield
        # httpx's own error has another name in another version of the client.
        except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
            if getattr(error, "errno", None) is not None:  # the volume's, not the network's
                raise
            raise self._meaning(error) from error

    def _meaning(self, error: BaseException) -> StepError:
        from huggingface_hub import constants

        refused = refusal(
            error,
            self.repository,
            kind="model",
            page=f"{constants.ENDPOINT}/{self.repository}",
            revision=self.revision,
            token=self.token,
        )
        if refused:
            return refused
        if reason := passing(error):
            return TransientError(
                f"{self.repository}: the hub does not answer as it should ({reason}); "
                "try again later"
            )
        return DataError(f"{self.repository}: the hub refuses: {first_line(error)}")

    def _examine(self, information: "ModelInfo") -> None:
        wanted = {file.rfilename: file for file in _wanted(information)}

        def read(name: str) -> str:
            path = self._file(wanted[name], str(information.sha))
            return path.read_text(encoding="utf-8")

        examine(self.repository, wanted, read)

    def _download(self, information: "ModelInfo") -> None:
        # One after the other: on SIGTERM the client's own pool would first finish its files.
        wanted, commit = _wanted(information), str(information.sha)
        total = sum(file.size or 0 for file in wanted)
        log.info(
            "fetching %s at %s: %d files, %s", self.repository, commit, len(wanted), size(total)
        )
        done = 0
        with progress(f"fetching {self.repository}", total, "bytes") as shown:
            for file in wanted:
                self._file(file, commit, tqdm_class=_bar(shown.update, done))
                done += file.size or 0
                shown.update(done)

    def _file(self, file: "RepoSibling", commit: str, **options: Any) -> Path:
        """One file of the commit, from the cache or the hub, with the bytes that were published."""
        from huggingface_hub import hf_hub_download

        try:
            path = Path(
                hf_hub_download(
                    self.repository,
                    file.rfilename,
                    revision=commit,
                    cache_dir=self.cache,
                    token=self.token or None,
                    **options,
                )
            )
        except RuntimeError as error:  # what hf_xet raises for all that goes wrong on the way
            raise TransientError(
                f"{self.repository}: {file.rfilename}: {first_line(error)}; try again later"
            ) from error
        found = files.sha256(path) if file.lfs else files.git_blob(path)
        published = file.lfs.sha256 if file.lfs else file.blob_id
        if found != published:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise DataError(
                f"{self.repository}: {file.rfilename} came with wrong bytes: digest {found}, the "
                f"hub has published {published}; it was removed, run the same command to fetch it"
            )
        return path


def _wanted(information: "ModelInfo") -> list["RepoSibling"]:
    """The files that transformers may load: one copy of the weights, and all small ones."""
    found = [
        file
        for file in information.siblings or []
        if _is_of_the_model(file.rfilename) and not _OTHER_WEIGHTS.fullmatch(file.rfilename)
    ]
    if any(file.rfilename.endswith(".safetensors") for file in found):
        found = [file for file in found if not file.rfilename.endswith((".bin", ".bin.index.json"))]
    return found


def _is_of_the_model(name: str) -> bool:
    """Folders below hold other formats; the only one that transformers reads is the templates'."""
    return "/" not in name or name.startswith("additional_chat_templates/")


def _bar(update: Callable[[int], None], done: int) -> type:
    """What the client calls of a tqdm bar, for one file; `done` are the bytes of those before."""

    class Bar:
        def __init__(self, **_: Any) -> None:
            self._done = done

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            self._done += int(count or 0)
            update(self._done)

        def update_transfer(self, _: float | None = 1) -> None:
            """Bytes on the wire; those on the disk are counted."""

        def set_postfix_str(self, _: str, refresh: bool = True) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

        def close(self) -> None:
            pass

    return Bar
