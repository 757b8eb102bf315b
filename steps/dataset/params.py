"""The contract of the dataset step."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, SecretStr

from steps.params import Address, Further, Man, Place, StepParams
from steps.secrets import HF_TOKEN, Secret

S3_SECRET = Secret(
    name="s3-secret",
    keys=(
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "AWS_S3_ENDPOINT",
    ),
    hidden=("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    purpose="s3:// data sets",
)
HTTP_TOKEN = Secret(
    name="http-token",
    keys=("HTTP_BEARER_TOKEN",),
    hidden=("HTTP_BEARER_TOKEN",),
    purpose="https:// data sets behind a bearer token",
)


Schema = Literal["auto", "messages", "conversations", "alpaca", "prompt_completion"]


class DatasetParams(StepParams):
    """Fetch a chat data set, check every row, and split it for training and evaluation."""

    step: ClassVar[str] = "dataset"
    secrets: ClassVar[tuple[Secret, ...]] = (S3_SECRET, HF_TOKEN, HTTP_TOKEN)

    data_uri: Man[Address[Place[str]]] = Field(min_length=1)
    """hf://org/name[:config][@revision][#split], s3://bucket/key, http(s)://, pvc://claim/path or an
    absolute path: a file, a folder or prefix, or a glob. Several, a blank or new line between them,
    are taken one after another; with weights (0.7*hf://org/a 0.3*/data/b.jsonl) they are mixed by
    these shares, as many rows as there are without repeating any, or `subset`."""
    data_split: Man[float] = Field(default=0.9, gt=0, le=1)
    """Share of the rows for training; the rest is held out. 1.0 holds nothing out."""
    hf_token: SecretStr = SecretStr("")
    """Hugging Face token; prefer the secret hf-token."""
    subset: NonNegativeInt = 0
    """Take only N rows, chosen by the seed; 0 takes all."""
    seed: Further[int] = 42
    """Seed of subset and split."""
    s3_auth: Further[Literal["secret", "ambient", "anonymous"]] = "secret"
    """secret: both keys of s3-secret; ambient: the SDK's own chain (role, web identity); anonymous."""
    on_invalid: Further[Literal["error", "skip"]] = "error"
    """error: an invalid row ends the step; skip: it goes to dataset/rejected.jsonl with its reason."""
    eval_uri: Further[Address[Place[str]]] = ""
    """Held-out rows from here, addresses as in data_uri, instead of a split; they are not trained on."""
    chat_schema: Further[Schema] = "auto"
    """Keys that the rows have; auto finds out by row, any other refuses rows that lack its keys."""
    deduplicate: Further[Literal["exact", "none"]] = "exact"
    """exact: equal rows count once; none: they stay, all on one side of the split."""
