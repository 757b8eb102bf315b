"""Kubernetes Secrets as the steps meet them: environment variables that may or may not be set.

An engine references every key as optional, so that a pod never waits for a secret in silence;
the step itself says which secret and key it misses.
"""

import logging
import os
import re
from dataclasses import dataclass

from pydantic import SecretStr

from steps.errors import CredentialsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Secret:
    """One Kubernetes Secret and its keys; each key is an environment variable of the step."""

    name: str
    keys: tuple[str, ...]
    """All keys that a step reads; an empty tuple takes whatever the secret holds."""
    purpose: str
    """When it is needed, for the documentation."""
    hidden: tuple[str, ...] = ()
    """Keys whose values must never be shown."""


HF_TOKEN = Secret(
    name="hf-token",
    keys=("HF_TOKEN",),
    hidden=("HF_TOKEN",),
    purpose="gated or private assets of the Hugging Face Hub",
)
PULL_SECRET = Secret(
    name="oci-pull-secret-model-download",
    keys=("OCI_PULL_SECRET_MODEL_DOWNLOAD",),
    hidden=("OCI_PULL_SECRET_MODEL_DOWNLOAD",),
    purpose="private oci:// models",
)


def environment(key: str) -> str:
    """The variable's value without white space around it; empty where it is not set."""
    return os.environ.get(key, "").strip()


def in_header(value: str, secret: Secret, key: str) -> str:
    """The secret's value, if it can stand in a header, as tokens and keys do.

    Raises CredentialsError where it cannot: libraries quote it whole when they say so.
    """
    if not re.fullmatch("[!-~]*", value):
        raise CredentialsError(
            f"the secret {secret.name} (key {key}): blanks, line breaks or other characters that no "
            "token has are in it; put the bare value there"
        )
    return value


def hf_token(parameter: SecretStr) -> str:
    """The token for the Hugging Face Hub; empty for none. Raises what `in_header` raises."""
    key = "HF_TOKEN"
    return in_header(preferred(parameter, HF_TOKEN, key), HF_TOKEN, key)


def preferred(parameter: SecretStr, secret: Secret, key: str) -> str:
    """The parameter's value if it has one, with a warning that names the secret; else the key's."""
    value = parameter.get_secret_value().strip()
    if not value:
        return environment(key)
    log.warning(
        "a parameter carries what belongs in the secret %r (key %s): whoever can read the run can read it",
        secret.name,
        key,
    )
    return value
