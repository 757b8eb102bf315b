"""What errors of the Hugging Face Hub, its client and `datasets` mean for a step."""

from typing import Any

from steps import retries
from steps.errors import ConfigError, CredentialsError, DataError, StepError, causes
from steps.retries import TryAgain
from steps.secrets import HF_TOKEN

SECRET = f"the secret {HF_TOKEN.name} (key {HF_TOKEN.keys[0]})"


def told(
    error: BaseException, name: str, *, kind: str, page: str, revision: str | None, token: str
) -> StepError | TryAgain | None:
    """The `refusal`; TryAgain where the failure may pass; None where the error is of another sort."""
    refused = refusal(error, name, kind=kind, page=page, revision=revision, token=token)
    reason = passing(error)
    if refused or not reason:
        return refused
    return TryAgain(reason, retry_after(error))


def refusal(
    error: BaseException, name: str, *, kind: str, page: str, revision: str | None, token: str
) -> StepError | None:
    """What stands between us and a repository of that kind; None where the error is of another sort.

    CredentialsError where it is not for us, DataError where it or its revision is not there,
    ConfigError where HF_HUB_OFFLINE forbids to look.
    """
    from huggingface_hub import errors, get_token

    chain, status = causes(error), _status(error)
    has_token = bool(token or get_token())

    def is_a(what: type[BaseException]) -> bool:
        return any(isinstance(cause, what) for cause in chain)

    if is_a(errors.OfflineModeIsEnabled):
        return ConfigError(
            f"{name}: not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or "
            f"give the {kind} as a path"
        )
    if is_a(errors.GatedRepoError):
        whose = "the token's account" if has_token else "an account"
        return CredentialsError(
            f"{name}: gated: accept its licence at {page} with {whose}, and have that account's "
            f"token in {SECRET}"
        )
    if is_a(errors.RevisionNotFoundError):
        return DataError(f"{name}: there is no revision {revision!r}; name a branch, tag or commit")
    if not has_token and (is_a(errors.RepositoryNotFoundError) or status == 401):
        return CredentialsError(
            f"{name}: there is no such {kind} on the hub, or it is private or gated: check the "
            f"name; for a private one put a token into {SECRET}; for a gated one accept its "
            f"licence at {page} first"
        )
    if is_a(errors.RepositoryNotFoundError) and status == 404:
        return DataError(
            f"{name}: there is no such {kind} on the hub, or it is hidden from the token's account; "
            "check the name"
        )
    if status in (401, 403):
        return CredentialsError(
            f"{name}: the hub refuses the token ({status}); put a valid one into {SECRET}; for a "
            f"gated {kind} accept its licence at {page} too"
        )
    return None


def passing(error: BaseException) -> str | None:
    """In one line what keeps the hub from answering for now; None where it will not pass."""
    from huggingface_hub import errors

    if status := _status(error):
        may_pass = status in (408, 429) or status >= 500
        return f"the hub answers {status}" if may_pass else None
    network = (
        errors.HTTPError,  # type: ignore[attr-defined]  # httpx's own
        errors.LocalEntryNotFoundError,
        errors.FileMetadataError,
        ConnectionError,
        TimeoutError,
    )
    chain = causes(error)
    if any(isinstance(cause, network) for cause in chain):
        return f"no answer: {first_line(chain[-1])}"
    return None


def retry_after(error: BaseException) -> float | None:
    """Seconds after which the hub wants to be asked again, if it says so."""
    answer = _answer(error)
    return (
        retries.retry_after(str(answer.headers.get("Retry-After", "")))
        if answer is not None
        else None
    )


def first_line(error: BaseException) -> str:
    """The error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _status(error: BaseException) -> int:
    """The HTTP status of the hub's answer; 0 where there was none."""
    answer = _answer(error)
    return 0 if answer is None else int(answer.status_code)


def _answer(error: BaseException) -> Any:
    """The hub's answer that made the error; None where there was none."""
    answers = (getattr(cause, "response", None) for cause in causes(error))
    return next((answer for answer in answers if answer is not None), None)
