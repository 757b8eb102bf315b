"""What errors of the Hugging Face Hub and its client mean for a step."""

import contextlib
from collections.abc import Iterator

from steps.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    StepError,
    TransientError,
    UsageError,
)
from steps.secrets import HF_TOKEN

SECRET = f"the secret {HF_TOKEN.name!r} (key {HF_TOKEN.keys[0]})"


@contextlib.contextmanager
def told(repository: str, revision: str | None, token: str) -> Iterator[None]:
    """Errors of the client over a model's repository, raised as those of a step.

    UsageError for a name that can be none, DataError for a repository or revision that is not
    there, CredentialsError for one that is not for us, ConfigError where HF_HUB_OFFLINE forbids
    to look, TransientError where nobody answers.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UsageError(
            f"--model {repository!r}: neither an existing path nor a Hugging Face ID (org/name, "
            "and @revision if need be)"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # a download that failed says why in its cause
        raise _meaning(error.__cause__ or error, repository, revision, token) from error
    # httpx's own error has another name in another version of the client.
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:  # type: ignore[attr-defined]
        raise _meaning(error, repository, revision, token) from error
    except OSError as error:
        if error.errno is not None:  # the volume's, not the network's
            raise
        raise _meaning(error, repository, revision, token) from error


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: nobody answered, or not for now."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status in (408, 429) or status >= 500


def retry_after(error: BaseException) -> float | None:
    """Seconds after which the hub wants to be asked again, if it says so."""
    response = getattr(error, "response", None)
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return float(text) if text.isdigit() else None


def first_line(error: BaseException) -> str:
    """The error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _meaning(error: BaseException, repository: str, revision: str | None, token: str) -> StepError:
    from huggingface_hub import constants, errors, get_token

    has_token = bool(token or get_token())
    page = f"{constants.ENDPOINT}/{repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    match error:
        case errors.OfflineModeIsEnabled():
            return ConfigError(
                f"{repository}: not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it; "
                "unset it, or give the model as a path"
            )
        case errors.GatedRepoError():
            whose = "the token's account" if has_token else "an account"
            return CredentialsError(
                f"{repository}: gated; accept its licence at {page} with {whose}, and have that "
                f"account's token in {SECRET}"
            )
        case errors.RevisionNotFoundError():
            return DataError(
                f"{repository}: there is no revision {revision!r}; name a branch, tag or commit"
            )
        case errors.RepositoryNotFoundError() if not has_token:
            return CredentialsError(
                f"{repository}: the hub shows no such model without a token; check the name, or, "
                f"if it is private or gated, accept its licence at {page} and put a token into "
                f"{SECRET}"
            )
        case errors.RepositoryNotFoundError() if status == 404:
            return DataError(
                f"{repository}: the hub has no such model, or hides it from the token's account; "
                "check the name"
            )
    if status in (401, 403):
        return CredentialsError(
            f"{repository}: the hub refuses the token ({status}); put a valid one into {SECRET}"
        )
    if status and not is_transient(error):
        return DataError(f"{repository}: the hub refuses: {first_line(error)}")
    return TransientError(
        f"{repository}: the hub does not answer as it should ({first_line(error)}); try again later"
    )
