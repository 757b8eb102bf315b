"""The contract of the register step."""

from typing import ClassVar, Literal

from pydantic import Field

from steps.params import Further, Man, StepParams
from steps.secrets import Secret

REGISTRY_SECRET = Secret(
    name="model-registry",
    keys=("MODEL_REGISTRY_TOKEN", "MODEL_REGISTRY_CA"),
    hidden=("MODEL_REGISTRY_TOKEN",),
    purpose="a Model Registry with TLS and authentication",
)

SEMANTIC_VERSION = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"
)
"""https://semver.org, without the rule on leading zeros in pre-releases."""


class RegisterParams(StepParams):
    """Register the model with its provenance and scores in the Kubeflow Model Registry."""

    step: ClassVar[str] = "register"
    secrets: ClassVar[tuple[Secret, ...]] = (REGISTRY_SECRET,)

    address: Man[str] = ""
    """Model Registry address, scheme and port if need be; empty skips the registration."""
    author: Man[str] = Field(default="pipeline", min_length=1)
    """Author of the version."""
    name: Man[str] = Field(default="sft-model", min_length=1)
    """Name of the model in the registry."""
    version: Man[str] = Field(default="1.0.0", pattern=SEMANTIC_VERSION)
    """Semantic version, such as 1.0.0."""
    description: str = ""
    """Description of the version."""
    format_name: str = "pytorch"
    """Model format."""
    format_version: str = "1.0"
    """Version of the model format."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Port of an http registry whose address has none."""
    on_conflict: Further[Literal["error", "increment"]] = "error"
    """Another model under this version: an error, or the next free patch version."""
