"""Whether the hub's data sets that tasks ask about can be had, found out without fetching them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steps import hub_errors
from steps.errors import ConfigError, StepError, TransientError
from steps.retries import persist

T = TypeVar("T")


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub, as a task names it."""

    task: str
    repository: str
    config: str | None
    revision: str | None

    @property
    def _called(self) -> str:
        return f"{self.task}: its data set {self.repository}"

    def check(self, token: str) -> None:
        """Raise the StepError that says why the data set cannot be had.

        One that an earlier run has left in the cache can, whatever the hub says of it.
        """
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, is_offline_mode

        if self._is_cached():
            return
        if is_offline_mode():
            raise offline(self._called)
        api = HfApi(token=token or None)
        found = self._ask(lambda: api.dataset_info(self.repository, revision=self.revision), token)
        names = [file.rfilename for file in found.siblings or []]
        files = [name for name in names if not name.startswith((".", "README"))]
        if found.gated and files:  # anyone may read about one, but not have its files
            url = hf_hub_url(self.repository, files[0], repo_type="dataset", revision=self.revision)
            self._ask(lambda: get_hf_file_metadata(url, token=token or None), token)

    def _is_cached(self) -> bool:
        """Whether `datasets` would find it without the hub, by the way it lays its cache out."""
        from datasets import config
        from datasets.naming import camelcase_to_snakecase

        *owner, name = self.repository.split("/")
        folder = Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(name)]))
        return any(folder.glob(f"{self.config or ''}*/*/*/dataset_info.json"))

    def _ask(self, question: Callable[[], T], token: str) -> T:
        """The hub's answer; asked again while the hub is not able to answer."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own

        def attempt() -> T:
            try:
                return question()
            except (HTTPError, OSError, ValueError) as error:
                told = hub_errors.told(
                    error,
                    self._called,
                    kind="data set",
                    page=f"{constants.ENDPOINT}/datasets/{self.repository}",
                    revision=self.revision,
                    token=token,
                )
                if told is None:
                    raise
                raise told from error

        return persist(attempt, self._called)


def check(data_sets: Sequence[DataSet], token: str) -> None:
    """Raise one error that names all that cannot be had; of a hub that does not answer, the first."""
    refused: list[StepError] = []
    for each in data_sets:
        try:
            each.check(token)
        except TransientError:
            if not refused:
                raise
            break
        except StepError as error:
            refused.append(error)
    if refused:
        raise type(refused[0])("\n  ".join(map(str, refused)))


def offline(data_set: str) -> ConfigError:
    """What to say where a task's data is not in the cache and HF_HUB_OFFLINE is set."""
    return ConfigError(
        f"{data_set} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or give a "
        "task whose data lies here"
    )
