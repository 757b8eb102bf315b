"""What a cluster's refusals mean to the user, whichever way they come."""

from dataclasses import dataclass

from steps.errors import (
    ConfigError,
    CredentialsError,
    ExistsError,
    ForbiddenError,
    NotThereError,
    StepError,
    TransientError,
    UsageError,
)

_LONGEST_TEXT = 500  # a proxy's error page says no more in the rest


@dataclass(frozen=True)
class Request:
    """What was asked of the cluster, in the words of its access rules."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        """As a person would say it: `get workflows/one in namespace team-a`."""
        which = f"{self.resource}/{self.name}" if self.name else self.resource
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {which}{where}"


def refused(where: str, request: Request, status: int, words: str, login: str) -> StepError:
    """The error for an answer that is none: its HTTP status and the server's own words.

    `login` is what to do where the server does not know who asks.
    """
    words = " ".join(words.split())[:_LONGEST_TEXT]
    if status == 401:
        return CredentialsError(f"{where}: not logged in (401): {login}")
    if status == 403:
        return ForbiddenError(
            f"{where}: not allowed to {request}: ask for a Role with the verb {request.verb!r} on "
            f"{request.resource} (argoproj.io); the server says: {words}"
        )
    if status == 404:
        return NotThereError(f"{where}: cannot {request}: {words}")
    if status == 409:
        return ExistsError(f"{where}: cannot {request}: {words}")
    if status in (400, 422):
        return UsageError(f"{where}: {words}")
    if status == 429 or status >= 500:
        return TransientError(f"{where}: cannot {request} for now ({status}): {words}")
    return ConfigError(f"{where}: cannot {request}: an unexpected answer ({status}): {words}")


def not_installed(where: str) -> ConfigError:
    """The API server knows no workflows."""
    return ConfigError(
        f"{where}: Argo Workflows is not installed there: the API server knows no "
        "argoproj.io/v1alpha1 workflows. Install it, or choose another cluster (--context, --server)"
    )
