"""How a cluster runs the pipeline: one file, `sft.yaml`, beside the users' parameters.

namespace: team-a
images: {registry: quay.io/team-a}
storage: {size: 2Ti, storage_class: nfs}
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

import steps
from steps import flags
from steps.errors import UsageError
from steps.params import Declared
from steps.train.params import LABEL_KEY, LABEL_VALUE, QUANTITY, Toleration

_REGISTRY = r"^([A-Za-z0-9_.-]+(:[0-9]+)?(/[A-Za-z0-9_.-]+)*)?$"
_TAG = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_RESOURCE = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"
_ENDPOINT = r"^[A-Za-z0-9_.-]+(:[0-9]+)?$"
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
_MARKER = r"^[A-Za-z0-9_.-]*$"
_QUEUE = r"^[A-Za-z0-9_.-]+$"
_REGION = r"^[a-z0-9-]+$"
_PATH = r"^/[A-Za-z0-9_./-]*$"
_FIELD = r"^[-A-Za-z0-9_]+([.][-A-Za-z0-9_]+)*$"
_PREFIX = r"^([a-z]([-a-z0-9]{0,29}))?$"
_VARIABLE = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
_OBJECT = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"
_KEY = r"^[-A-Za-z0-9_.]+$"
_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME_OR_NONE = rf"^$|{_NAME}"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
"""A DNS label: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/."""
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY)]
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]


def _has_port(address: str) -> str:
    urlsplit(address).port  # noqa: B018  # ValueError where it is none
    return address


_PROXY = r"^(https?://[^\s/:@]+(:[0-9]{1,5})?/?)?$"
ProxyAddress = Annotated[
    str,
    StringConstraints(pattern=_PROXY),
    AfterValidator(_has_port),
]
"""Without user and password, which would stand in the manifests."""
Prefix = Annotated[str, StringConstraints(pattern=_PREFIX)]


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _above_zero(quantity: str) -> str:
    if not re.search(r"[1-9]", quantity):
        raise ValueError("must be more than 0")
    return quantity


Quantity = Annotated[str, StringConstraints(pattern=QUANTITY), AfterValidator(_above_zero)]
_DURATION, _DEADLINE = r"^[0-9]+[smhd]$", r"^[1-9][0-9]*[smhd]$"
Duration = Annotated[str, StringConstraints(pattern=_DURATION)]
"""A whole number and a unit: 30s, 10m, 12h, 7d."""
Deadline = Annotated[str, StringConstraints(pattern=_DEADLINE)]
Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE)]

FieldPath = Annotated[str, StringConstraints(pattern=_FIELD)]
"""Names of JSON objects' fields, a dot between them."""

_FORMS = {
    **dict.fromkeys(
        (_NAME, _NAME_OR_NONE),
        "a name: up to 63 small letters, digits and dashes, with no dash at either end",
    ),
    _DURATION: "a whole number and a unit: 30s, 10m, 12h, 7d",
    _DEADLINE: "a whole number above 0 and a unit: 30s, 10m, 12h, 7d",
    _PROXY: "an address without path, user and password: http://proxy:3128",
    QUANTITY: "a quantity: 500m, 4, 64Gi",
    LABEL_KEY: "the key of a label: team, example.com/team",
    _PREFIX: "up to 30 small letters, digits and dashes, a letter first: dev-",
    _OBJECT: "the name of an object: up to 253 small letters, digits, dashes and dots",
    _REGISTRY: "a registry and a path, without a scheme: quay.io/team-a",
    _TAG: "a tag: up to 128 letters, digits, and _.- between them",
    _DIGEST: "a digest: sha256: and 64 hexadecimal digits",
    _RESOURCE: "the name of a resource: nvidia.com/gpu",
    _KEY: "the name of an entry: letters, digits, and -_.",
    _VARIABLE: "the name of a variable: letters, digits, and -._, no digit first",
    _ENDPOINT: "a host and a port, without a scheme: minio.minio.svc:9000",
    _BUCKET: "the name of a bucket: 3 to 63 small letters, digits, dashes and dots",
    _MARKER: "the name of an object, without a folder: _SUCCESS",
    _QUEUE: "the name of a queue: letters, digits, and _.-",
    _REGION: "a region: eu-central-1",
    _PATH: "a path: /runs",
    _FIELD: "the name of a field, or several with a dot between: data.uri",
    LABEL_VALUE: "the value of a label: up to 63 letters, digits, and -_. between them",
}
"""What the patterns mean to people."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _network(text: str) -> str:
    if "/" not in text:
        raise ValueError("not a network; write one as 10.0.0.0/8")
    ipaddress.ip_network(text)
    return text


def _can_agree(replicas: int) -> int:
    if replicas == 2:
        raise ValueError("two servers cannot outvote one another; take 1 or 3")
    return replicas


Cidr = Annotated[str, AfterValidator(_network)]


def seconds(duration: str) -> int:
    """A duration's seconds."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def go_duration(duration: str) -> str:
    """A duration as Go reads it, which has no days."""
    return f"{int(duration[:-1]) * 24}h" if duration.endswith("d") else duration


class Group(Declared):
    """Settings that belong together."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


_DEFAULTS: Any = Field(default_factory=dict, validate_default=True)
"""A group's own defaults; an instance here would build a validator a group, at each start."""


class Images(Group):
    """Where the steps' images come from."""

    registry: str = Field(default="", pattern=_REGISTRY)
    """Registry and path before the image's name: quay.io/team-a. Empty: images the nodes have already."""
    tag: str = Field(default=steps.__version__, pattern=_TAG)
    """Tag of all images."""
    digests: dict[Name, Digest] = {}
    """Digest by image name (sft-train: sha256:...); pins that image, and its tag counts for nothing."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a node fetches an image."""
    pull_secrets: list[Name] = []
    """Secrets with the registry's credentials."""

    def reference(self, image: str) -> str:
        """The image as a container names it."""
        name = f"{self.registry}/{image}" if self.registry else image
        digest = self.digests.get(image)
        return f"{name}@{digest}" if digest else f"{name}:{self.tag}"


class Storage(Group):
    """The volume that holds the runs, `runs/<workflow>` a run, and the cache that they share."""

    claim: Name = "sft-runs"
    """PersistentVolumeClaim; registered models are served from it: pvc://<claim>/runs/<workflow>/model."""
    create: bool = True
    """Whether the claim is among the manifests; false where it is there already."""
    size: Quantity = "500Gi"
    """Size of the claim."""
    storage_class: str = Field(default="", pattern=_OBJECT)
    """StorageClass; empty takes the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"] = "ReadWriteMany"
    """ReadWriteOnce serves a single node: no TrainJob with several workers."""
    per_run: bool = False
    """A claim a run, named as its workflow and kept until someone deletes it; no cache is shared."""


class Gpu(Group):
    """The accelerators of the pods that train or evaluate."""

    resource: str = Field(default="nvidia.com/gpu", pattern=_RESOURCE)
    """Name of the extended resource."""
    node_selector: dict[LabelKey, LabelValue] = {}
    """More labels of the nodes for pods with GPUs."""
    tolerations: list[Toleration] = [Toleration(key="nvidia.com/gpu", effect="NoSchedule")]
    """Taints that pods with GPUs tolerate."""
    shared_memory: Quantity = "16Gi"
    """Size of /dev/shm of the pods that train: NCCL needs more than the 64 MiB of a container."""


class Retry(Group):
    """When a step that failed through no fault of its own is tried again."""

    limit: int = Field(default=4, ge=0, le=100)
    """Retries of a step after exit code 75, or after its pod was lost, evicted or killed."""
    duration: Duration = "30s"
    """Wait before the first retry."""
    factor: int = Field(default=2, ge=1, le=10)
    """Each further wait is so many times longer."""
    cap: Duration = "10m"
    """Longest wait."""


class Cleanup(Group):
    """What is removed, and when; the run's folder always stays."""

    pods: Literal[
        "OnPodSuccess", "OnPodCompletion", "OnWorkflowSuccess", "OnWorkflowCompletion"
    ] = "OnPodSuccess"
    """Which pods are removed; failed ones stay for their logs."""
    pods_after: Duration = "10m"
    """How long a pod that is to be removed stays."""
    succeeded_after: Duration = "7d"
    """How long a succeeded workflow is kept."""
    failed_after: Duration = "30d"
    """How long a failed one is kept, to be retried."""


class Semaphore(Group):
    """A ConfigMap's entry that says how many runs may be at work at once."""

    config_map: Name
    """ConfigMap in the run's namespace."""
    key: str = Field(pattern=_KEY)
    """Entry that holds the number."""


class Proxy(Group):
    """The proxy that pods reach the world by."""

    http: ProxyAddress = ""
    """Proxy of http:// addresses."""
    https: ProxyAddress = ""
    """Proxy of https:// addresses."""
    no_proxy: str = ".svc,.cluster.local,10.0.0.0/8"
    """Hosts, domains and networks that are reached without it."""


class CaBundle(Group):
    """Certificates that the steps trust, in PEM format."""

    config_map: Name
    """ConfigMap in the run's namespace."""
    key: str = Field(default="ca-bundle.crt", pattern=_KEY)
    """Entry that holds the certificates; they stand in place of the image's, so public ones too."""


class Schedule(Group):
    """Runs by the clock (CronWorkflow)."""

    cron: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]], BeforeValidator(_one_as_list)
    ] = Field(min_length=1)
    """When: five fields, @daily and the like, or `@every 6h`. Several are all kept."""
    timezone: str = "Etc/UTC"
    """IANA time zone of the schedule."""
    concurrency: Literal["Forbid", "Allow", "Replace"] = "Forbid"
    """What happens when the last run is not over yet."""
    starting_deadline: Duration = "1h"
    """How late a missed run may still start."""
    succeeded_kept: int = Field(default=3, ge=0)
    """Succeeded runs in the list."""
    failed_kept: int = Field(default=5, ge=0)
    """Failed runs in the list."""
    suspended: bool = False
    """Whether the schedule is paused."""
    parameters: dict[str, Any] = {}
    """Parameters of the scheduled runs, by any of their names."""


def _as_it_is(part: str) -> str:
    if re.search(r"[*?]|://", part):
        raise ValueError("is compared as it is, with a key in the bucket: no wildcards, no scheme")
    return part


PartOfKey = Annotated[str, AfterValidator(_as_it_is)]


class KeyFilter(Group):
    """Which objects start a run."""

    prefix: PartOfKey = ""
    """Only keys that begin so."""
    suffix: PartOfKey = ".jsonl"
    """Only keys that end so."""
    marker: str = Field(default="", pattern=_MARKER)
    """An object's name, `_SUCCESS`: its arrival starts the run, on all that lies beside it."""
    parameter: str = "data_uri"
    """Parameter that gets the object's s3:// address."""


class Minio(KeyFilter):
    """Objects that land in a bucket of a MinIO server."""

    endpoint: str = Field(pattern=_ENDPOINT)
    """Host and port."""
    bucket: str = Field(pattern=_BUCKET)
    """The bucket; the keys of s3-secret may listen to it."""
    insecure: bool = False
    """Plain http."""


class Sqs(KeyFilter):
    """Objects that land in a bucket of AWS S3, by the queue it notifies."""

    queue: str = Field(pattern=_QUEUE)
    """Name of the queue."""
    region: str = Field(pattern=_REGION)
    """Region of the queue."""
    role_arn: str = ""
    """Role that may read the queue; empty: the keys of s3-secret."""


class Webhook(Group):
    """Runs that a POST starts, with a bearer token."""

    port: int = Field(default=12000, ge=1, le=65535)
    """Port of the service."""
    path: str = Field(default="/runs", pattern=_PATH)
    """Path that is posted to."""
    secret: Name = "sft-webhook"  # noqa: S105  # its name
    """Secret with the token under the key `token`."""
    fields: dict[str, FieldPath] = {"data_uri": "data_uri"}
    """Field of the body by the parameter that it sets; a dot leads into an object. A body that lacks
    one of them starts nothing, nor does one with a brace, a `$` or a control character in them. Its `id`, if it has one, tells a new event from one delivered again."""


class Bus(Group):
    """The EventBus (JetStream) between event sources and sensor."""

    create: bool = True
    """Whether it is among the manifests; false where the namespace has one named `default`."""
    version: str = Field(default="2.10.10", pattern=_TAG)
    """Version of NATS, one that the controller's configuration lists."""
    replicas: Annotated[int, AfterValidator(_can_agree)] = Field(default=3, ge=1)
    """1, or 3 and more."""
    volume_size: Quantity = "10Gi"
    """Events outlive their pods on a volume of this size."""


class Events(Group):
    """Runs that an event starts (Argo Events)."""

    bus: Bus = _DEFAULTS
    minio: Minio | None = None
    sqs: Sqs | None = None
    webhook: Webhook | None = None
    per_hour: int = Field(default=10, ge=1)
    """Most runs that each source starts in an hour; further events wait."""
    parameters: dict[str, Any] = {}
    """Parameters of the runs that events start, by any of their names."""


class Network(Group):
    """What the hardened overlay lets the pods reach; the cluster's DNS always."""

    allow_cidrs: list[Cidr] = ["0.0.0.0/0"]
    """Networks that steps may open connections to."""
    api_cidrs: list[Cidr] = ["0.0.0.0/0"]
    """Networks of the cluster's API server (ports 443 and 6443), to which Argo's container in every pod
    reports. Who narrows `allow_cidrs` narrows this to the API server's address too."""
    ports: dict[str, list[Annotated[int, Field(ge=1, le=65535)]]] = {
        "dataset": [80, 443, 9000],
        "train": [443],
        "evaluate": [443],
        "register": [80, 443, 8080],
    }
    """TCP ports there, and on services of the cluster, by step; a step that is not named keeps its own."""

    @field_validator("ports")
    @classmethod
    def _others_keep_theirs(cls, ports: dict[str, list[int]]) -> dict[str, list[int]]:
        return {**cls.model_fields["ports"].default, **ports}


class Settings(Group):
    """How a cluster runs the pipeline."""

    namespace: Annotated[str, StringConstraints(pattern=_NAME_OR_NONE)] = ""
    """Namespace of all objects; empty leaves it to kubectl (-n)."""
    name_prefix: Prefix = ""
    """Before the name of every object: two teams in one namespace, or `dev-`."""
    scope: Literal["namespace", "cluster"] = "namespace"
    """cluster: a ClusterWorkflowTemplate, for all namespaces; the rest stays in this one."""
    platform: Literal["kubernetes", "openshift"] = "kubernetes"
    """openshift: no fixed user or group, the namespace's own range is taken."""
    argo: Annotated[Literal["4", "3.7", "3.6"], BeforeValidator(_number_as_text)] = "4"
    """Version of Argo Workflows; 3.6 has no cap of the retries' wait."""
    launcher: Literal["trainjob", "local"] = "trainjob"
    """trainjob: training runs in the pods of a TrainJob (Kubeflow Trainer) that the step submits and
    follows; local: in the step's own pod, with its GPUs."""
    cluster_auth: Literal["secret", "service-account"] = "secret"
    """Who submits a TrainJob: the secret kubernetes-credentials, or the train step's service account."""
    user: int = Field(default=10001, ge=1000, lt=2**31)
    """User and group of all processes, on Kubernetes."""
    images: Images = _DEFAULTS
    storage: Storage = _DEFAULTS
    claims: list[Name] = []
    """More claims, mounted read-only under /claims/<claim> for pvc:// addresses."""
    secrets: dict[Name, Name] = {}
    """Other names of the secrets: {hf-token: team-hf}."""
    gpu: Gpu = _DEFAULTS
    scratch: Quantity = "20Gi"
    """Size of /tmp, the only other place that a step can write to."""
    retry: Retry = _DEFAULTS
    deadlines: dict[str, Deadline] = {"dataset": "12h", "evaluate": "24h", "register": "1h"}
    """Longest time of one attempt of a step, by step; none where it is not named."""
    cleanup: Cleanup = _DEFAULTS
    mutex: str = Field(default="", pattern=_OBJECT)
    """Runs under one mutex train one after another."""
    semaphore: Semaphore | None = None
    """So many runs train at once as a ConfigMap says."""
    priority_class: str = Field(default="", pattern=_OBJECT)
    """PriorityClass of all pods."""
    node_selector: dict[LabelKey, LabelValue] = {}
    """Labels of the nodes for all pods."""
    tolerations: list[Toleration] = []
    """Taints that all pods tolerate."""
    labels: dict[LabelKey, LabelValue] = {}
    """Labels of all objects and pods."""
    annotations: dict[LabelKey, str] = {}
    """Annotations of all pods."""
    env: dict[Variable, str] = {}
    """Environment of all steps."""
    proxy: Proxy | None = None
    ca_bundle: CaBundle | None = None
    artifacts: bool = False
    """Keep the report as an artifact: true where Argo has an artifact repository."""
    parameters: dict[str, Any] = {}
    """The team's defaults of the workflow parameters, by any of their names."""
    schedule: Schedule | None = None
    events: Events | None = None
    network: Network = _DEFAULTS

    def named(self, name: str) -> str:
        """An object's name, with the prefix."""
        return self.name_prefix + name

    def secret(self, name: str) -> str:
        """What the cluster calls a secret of the steps."""
        return self.secrets.get(name, name)


Model = TypeVar("Model", bound=BaseModel)


def read(
    path: Path | None, given: Mapping[str, Any], called: Mapping[str, str] | None = None
) -> Settings:
    """The settings of the file, with those given over them: `{"images.registry": "quay.io/a"}`.

    `called` has the words by which those were given, for messages: `--set images.registry`. Raises
    UsageError that lists everything that is wrong with them.
    """
    values: dict[str, Any] = {}
    if path is not None:
        from workflows import documents  # its import of yaml would slow every --help

        values = documents.from_file(path)
    for name, value in given.items():
        _put(values, name, value)
    return validate(values, str(path or "settings"), called or {})


def validate(
    values: Mapping[str, Any], where: str, called: Mapping[str, str] | None = None
) -> Settings:
    """The settings made of the values; UsageError with all that is wrong, each with its place.

    That is `where`, but for the dotted names that were `called` otherwise.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_told(problem, where, called or {}) for problem in error.errors()]
        raise UsageError("\n  ".join(problems)) from None


def _told(problem: Any, where: str, called: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    place = f"{where}: {name}" if name else where
    for given, words in called.items():
        if f"{name}.".startswith(f"{given}."):
            place = words + name.removeprefix(given)
    if problem["type"] == "extra_forbidden":
        return f"{place} is not a setting{_meant(name)}"
    if problem["type"] == "missing":
        return f"{place} is required"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if form := _FORMS.get(problem.get("ctx", {}).get("pattern", "")):
        message = f"should be {form}"
    told = f"{place}: {message[:1].lower()}{message[1:]}"
    # An address that is refused may be so for the password in it.
    return told if problem["loc"][:1] == ("proxy",) else f"{told}, got {problem['input']!r}"


def _meant(name: str) -> str:
    last = name.rpartition(".")[2]
    every = list(_dotted_names(Settings))
    return flags.nearest(name, every, [each for each in every if each.endswith(f".{last}")])


def _dotted_names(group: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in group.model_fields.items():
        yield before + name
        if inner := group_of(field.annotation):
            yield from _dotted_names(inner, f"{before}{name}.")


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that the annotation is, or may be."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Group):
            return part
    return None


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value at a dotted name, which may lead through groups that are not there yet."""
    *groups, last = name.split(".")
    for group in groups:
        inner = values.get(group)
        values[group] = inner = dict(inner) if isinstance(inner, dict) else {}
        values = inner
    values[last] = value
