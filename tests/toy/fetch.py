"""Fetch a base model, and do nothing with it."""

from typing import ClassVar

from pydantic import SecretStr

from steps import base_model, entrypoint
from steps.entrypoint import Run
from steps.params import Man, StepParams
from steps.record import Asset, Result
from steps.secrets import HF_TOKEN, PULL_SECRET, Secret, hf_token, preferred


class FetchParams(StepParams):
    """Fetch a base model."""

    step: ClassVar[str] = "fetch"
    secrets: ClassVar[tuple[Secret, ...]] = (HF_TOKEN, PULL_SECRET)

    model: Man[str]
    """Base model."""


def check(params: FetchParams, run: Run) -> None:
    found = base_model.check(params.model, run, **_credentials())
    entrypoint.log.info(
        "examined %s", sorted(path.name for path in found.folder.iterdir()) if found else 0
    )


def inputs(params: FetchParams, run: Run) -> dict[str, Asset]:
    return {"base_model": base_model.pinned(params.model, run, **_credentials())}


def main(params: FetchParams, run: Run) -> Result:
    return Result()


def _credentials() -> dict[str, str]:
    none = SecretStr("")
    return {
        "hf_token": hf_token(none),
        "pull_secret": preferred(none, PULL_SECRET, "OCI_PULL_SECRET_MODEL_DOWNLOAD"),
    }


if __name__ == "__main__":
    entrypoint.run(main, FetchParams, inputs=inputs, check=check)
