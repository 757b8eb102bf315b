"""Parameters, declared once: a pydantic model a step is its flags, its engine parameters and its help.

A field's docstring is its help text; what an engine must know beyond the type is in the markers::

    epochs: Man[PositiveInt] = 1
    \"\"\"Passes over the training split.\"\"\"
"""

import ast
import functools
import inspect
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr
from pydantic.fields import FieldInfo

from steps.logs import public_uri
from steps.secrets import Secret

T = TypeVar("T")


@dataclass(frozen=True)
class Marker:
    """A property of a parameter that its type does not tell."""

    name: str


MAN = Marker("man")
FURTHER = Marker("further")
CLUSTER = Marker("cluster")
MASKED = Marker("masked")
ADDRESS = Marker("address")
PLACE = Marker("place")
OPERATIONAL = Marker("operational")

Man = Annotated[T, MAN]
"""One of the parameters a user meets first: `man` in its workflow name, the others are `opt`."""
Further = Annotated[T, FURTHER]
"""Listed after the parameters that users of the Kubeflow pipeline know."""
Cluster = Annotated[T, CLUSTER, OPERATIONAL]
"""Only a cluster can serve it: elsewhere any value but the default is refused."""
Masked = Annotated[T, MASKED]
"""May hold secrets: masked in logs and records."""
Address = Annotated[T, ADDRESS]
"""May hold a password or a presigned link's signature: these are masked in logs and records."""
Place = Annotated[T, PLACE]
"""May be a path of the machine, from where the user stands; an engine that goes on with a run from
elsewhere keeps it whole."""
Operational = Annotated[T, OPERATIONAL]
"""Says how the work is done, not what comes out: not part of the fingerprint."""


class Declared(BaseModel):
    """Parameters whose help is the docstring below each."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Read the docstrings; pydantic's own way tokenizes every file in Python, which slows `--help`."""
        super().__pydantic_init_subclass__(**options)
        file = getattr(sys.modules[cls.__module__], "__file__", None)
        for name, text in _docstrings(file).get(cls.__name__, {}).items() if file else ():
            if name in cls.model_fields:
                cls.model_fields[name].description = text


@functools.cache
def _docstrings(file: str) -> dict[str, dict[str, str]]:
    """By class and by annotated name, the docstring below it in the file."""
    return {
        node.name: {
            named.target.id: inspect.cleandoc(text.value.value)
            for named, text in pairwise(node.body)
            if isinstance(named, ast.AnnAssign)
            and isinstance(named.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


class StepParams(Declared):
    """The users' parameters of one step.

    `step` is the step's name: its module, record, and log file are named after it.
    """

    step: ClassVar[str]
    secrets: ClassVar[tuple[Secret, ...]] = ()
    """Kubernetes Secrets that the step may need."""


def _not_in_a_file(path: Path) -> Path:
    for place in (path, *path.parents):
        if place.is_file():
            raise ValueError(f"{place} is a file, not a folder")
    return path


Folder = Annotated[Path, AfterValidator(_not_in_a_file)]
"""A folder that is there or can be made."""


class Bound(Declared):
    """What the engine tells every step of its run; no workflow parameter shows it."""

    workspace: Folder
    """Folder of the run, on a volume that its steps share."""
    cache: Folder | None = None
    """Folder shared between runs: base models and data sets of the hub. Default: `cache` in the workspace."""
    outputs: Folder | None = None
    """Folder for small results, one file a name, as an engine collects them."""
    claims: Path = Path("/claims")
    """Folder where claims for pvc:// addresses are mounted, each under its name."""
    verbosity: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Log level; DEBUG shows tracebacks."""
    run_name: str = ""
    """Name of the run. Default: the workspace's last part."""
    run_uid: str = ""
    """Unique ID of the run at its engine."""
    namespace: str = ""
    """Namespace of the run, where its TrainJob is made. Default: the pod's, or the kubeconfig's."""
    volume_claim: str = ""
    """Claim that holds the workspace; gives the model an address that can be served."""
    volume_path: str = ""
    """Path of the workspace inside that claim."""
    worker_image: str = ""
    """Image of the training workers of a TrainJob."""
    worker_pod: dict[str, Any] = {}
    """What their pods have as the engine's own do, as JSON: pull secrets, proxy, user ..."""


def marked(field: FieldInfo, marker: Marker) -> bool:
    """Whether the field carries the marker."""
    return marker in field.metadata


def is_secret(field: FieldInfo) -> bool:
    """Whether the field's value is a secret: never in an argument list, nor shown or kept."""
    return field.annotation is SecretStr


def may_hold_secret(field: FieldInfo) -> bool:
    """Whether engines hand the value over in the environment, not in an argument list."""
    return is_secret(field) or marked(field, MASKED) or marked(field, ADDRESS)


def withheld(params: StepParams) -> set[str]:
    """Names of the fields whose value may not be kept as it is: a secret is, or may be, in it."""
    fields, values, public = (
        type(params).model_fields,
        params.model_dump(mode="json"),
        shown(params),
    )
    return {
        name
        for name, field in fields.items()
        if is_secret(field) or (may_hold_secret(field) and public[name] != values[name])
    }


def type_name(field: FieldInfo) -> str:
    """The field's type as tables and help show it: str, int, float, bool, list or dict."""
    kind: Any = get_origin(field.annotation) or field.annotation
    if kind is Literal:
        kind = type(get_args(field.annotation)[0])
    return kind.__name__ if kind in (int, float, bool, list, dict) else "str"


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values a field is limited to; empty where there is no such list."""
    if get_origin(field.annotation) is Literal:
        return tuple(str(value) for value in get_args(field.annotation))
    return ()


POD = ("gpu", "cpu", "memory")
"""Parameters that an engine makes a step's own pod from: inside a pod they are served already."""


def in_pod() -> bool:
    """Whether this process runs in a pod of Kubernetes."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def required_on_cluster_only(params: StepParams, served: tuple[str, ...]) -> list[str]:
    """Names of the cluster's parameters, but for those served here, whose value is not their default."""
    return [
        name
        for name, field in type(params).model_fields.items()
        if marked(field, CLUSTER) and name not in served and getattr(params, name) != field.default
    ]


def deciding(params: StepParams) -> dict[str, Any]:
    """The values that decide what comes out: neither secrets nor how the work is done."""
    return {
        name: value
        for name, value in params.model_dump(mode="json").items()
        if not is_secret(field := type(params).model_fields[name])
        and not marked(field, OPERATIONAL)
    }


def shown(params: StepParams) -> dict[str, Any]:
    """All values as logs and records may show them: secrets masked, unset ones empty."""
    values = params.model_dump(mode="json")
    for name, field in type(params).model_fields.items():
        if marked(field, MASKED) and values[name] not in ("", field.default):
            values[name] = "**********"
        elif isinstance(values[name], str):
            values[name] = public_uri(values[name])
    return values
