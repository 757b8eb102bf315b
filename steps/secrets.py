"""Kubernetes Secrets as the steps meet them: environment variables that may or may not be set.

An engine references every key as optional, so that a pod never waits for a secret in silence;
the step itself says which secret and key it misses.
"""

import logging
import os
from dataclasses import dataclass

from pydantic import SecretStr

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
