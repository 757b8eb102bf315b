"""The contract of the train step."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    model_validator,
)

from steps.params import (
    Cluster,
    Declared,
    Further,
    Man,
    Masked,
    Operational,
    Place,
    StepParams,
)
from steps.secrets import HF_TOKEN, PULL_SECRET, Secret

KUBERNETES_CREDENTIALS = Secret(
    name="kubernetes-credentials",
    keys=("KUBERNETES_SERVER_URL", "KUBERNETES_AUTH_TOKEN"),
    hidden=("KUBERNETES_AUTH_TOKEN",),
    purpose="submitting a TrainJob with cluster_auth secret",
)
TRAIN_ENV = Secret(
    name="train-env", keys=(), purpose="more environment for the workers (trackers' keys)"
)
TRAIN_ENV_PREFIX = "TRAIN_ENV_"
"""Before the keys of `train-env` in the environment of a step that submits a TrainJob: it passes them on
by reference."""

WORKER = "train-worker"
"""Component of a TrainJob's pods, by their label app.kubernetes.io/component."""

COUNT = r"^[0-9]+$"
QUANTITY = r"^[0-9]+([.][0-9]+|)(m|k|[MGTPE]|[KMGTPE]i|)$"
"""A number of things, and a Kubernetes quantity as people write it: 4, 500m, 64Gi. Engines put the patterns
into expressions of theirs, so they have neither question mark nor backslash."""


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(COUNT, value):
        raise ValueError("should be a whole number, written in digits alone")
    return value


Count = Annotated[NonNegativeInt, BeforeValidator(_digits)]
"""A number that an engine sizes a pod by: written as both read it the same."""

LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
"""The value of a Kubernetes label; also the name of most objects."""


class Toleration(Declared):
    """A toleration as a pod has it."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _fits(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("a value needs operator Equal")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key")
        return self


class CertificateMap(Declared):
    """Certificates in a ConfigMap, as the environment names them once they are mounted."""

    config_map: str
    key: str
    path: str
    """The file that they are in the pod."""


class WorkerPod(Declared):
    """What an engine gives the pods of a TrainJob as it gives it to its own: the bound `worker_pod`."""

    service_account: str = ""
    """Account of the workers; empty takes the namespace's default."""
    image_pull_secrets: list[str] = Field(default=[])
    env: dict[str, str] = Field(default={})
    """Proxy, certificates, and whatever else all steps have."""
    certificates: CertificateMap | None = None
    env_secret: str = TRAIN_ENV.name
    """What the cluster calls the secret `train-env`."""
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    user: int | None = None
    """User and group of the processes; none where the platform gives each namespace its own."""
    scratch: str = "20Gi"
    """Size of /tmp, the only place beside the volume that a worker can write to."""


class TrainParams(StepParams):
    """Fine-tune a chat model on the training split."""

    step: ClassVar[str] = "train"
    secrets: ClassVar[tuple[Secret, ...]] = (
        HF_TOKEN,
        KUBERNETES_CREDENTIALS,
        PULL_SECRET,
        TRAIN_ENV,
    )

    train_batch: Man[PositiveInt] = 128
    """Rows per optimizer step, over all workers."""
    epochs: Man[PositiveInt] = 1
    """Passes over the training split."""
    gpu: Man[Cluster[Count]] = 1
    """GPUs per worker."""
    model: Man[Place[str]] = Field(default="Qwen/Qwen2.5-1.5B-Instruct", min_length=1)
    """Base model: Hugging Face ID, path, pvc:// or oci://."""
    tokens: Man[PositiveInt] = 10000
    """Most tokens in one forward pass on a GPU; caps memory."""
    workers: Man[Cluster[PositiveInt]] = 4
    """Training pods."""
    annotations: Cluster[str] = ""
    """Pod annotations, k=v,k=v."""
    cpu: Cluster[str] = Field(default="4", pattern=QUANTITY)
    """CPU cores per worker: 4, 500m."""
    env_vars: Masked[Operational[str]] = (
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,NCCL_DEBUG=INFO,"
        "INSTRUCTLAB_NCCL_TIMEOUT_MS=600000"
    )
    """Environment of the training processes, K=V,K=V; a comma that no K= follows belongs to the value."""
    hf_token: SecretStr = SecretStr("")
    """Hugging Face token for gated models; prefer the secret hf-token."""
    labels: Cluster[str] = ""
    """Pod labels, k=v,k=v."""
    learning_rate: float = Field(default=5e-06, gt=0, le=1e30, allow_inf_nan=False)
    """Peak learning rate; warm-up and the scheduler shape the rest."""
    lr_warmup: NonNegativeInt = 0
    """Warm-up steps."""
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
    ] = "cosine"
    """Learning rate scheduler."""
    max_seq_len: PositiveInt = 8192
    """Longest row, in tokens; longer rows are dropped and counted."""
    memory: Cluster[str] = Field(default="64Gi", pattern=QUANTITY)
    """Memory per worker: 64Gi."""
    num_procs: Operational[str] = Field(default="auto", pattern=r"^(auto|[1-9][0-9]*)$")
    """Training processes per worker: auto (one a GPU) or a number."""
    pull_secret: SecretStr = SecretStr("")
    """Docker config.json content for oci:// models; prefer the secret oci-pull-secret-model-download."""
    save_epoch: bool = True
    """Keep the model of each epoch in checkpoints/."""
    save_full_state: bool = False
    """Keep the full training state in checkpoints/ when training has ended."""
    fsdp_sharding: Literal["FULL_SHARD", "HYBRID_SHARD", "NO_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD"
    """How parameters are sharded over GPUs."""
    save_samples: NonNegativeInt = 0
    """Rows between checkpoints; 0 for none."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the order of the rows, and of everything else that draws numbers."""
    use_liger: bool = False
    """Use Liger kernels."""
    launcher: Further[Literal["auto", "trainjob", "local"]] = "auto"
    """trainjob: Kubeflow Trainer; local: this machine or pod; auto: trainjob where a cluster is at hand."""
    cluster_auth: Further[Cluster[Literal["secret", "service-account", "kubeconfig"]]] = "secret"
    """Who submits the TrainJob: the secret kubernetes-credentials, the pod's service account, a kubeconfig."""
    runtime: Further[Cluster[str]] = "training-hub"
    """ClusterTrainingRuntime, or TrainingRuntime of the namespace."""
    chat_template: Further[Place[str]] = ""
    """Path of a Jinja chat template; empty takes the tokenizer's."""
    checkpoint_minutes: Further[Operational[NonNegativeInt]] = 60
    """Minutes between checkpoints of the full state, beside those of the epochs: about what a killed
    run loses; 0 for epochs only."""
    trainer_api: Further[Cluster[Literal["auto", "v2.1", "v2.2"]]] = "auto"
    """Shape of the TrainJob: Kubeflow Trainer 2.1 (OpenShift AI 3), or 2.2 and later; auto asks the cluster."""
    queue: Further[Cluster[str]] = Field(default="", pattern=LABEL_VALUE)
    """Kueue LocalQueue that the TrainJob waits in."""
    gpu_resource: Further[Cluster[str]] = Field(
        default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"
    )
    """Extended resource that a worker's GPUs are: amd.com/gpu, nvidia.com/mig-1g.5gb."""
    node_selector: Further[Cluster[str]] = ""
    """Labels of the workers' nodes, k=v,k=v."""
    tolerations: Further[Cluster[list[Toleration]]] = Field(default=[])
    """Taints that the workers tolerate, a JSON list of tolerations as pods have them."""
    shm_size: Further[Cluster[str]] = Field(default="16Gi", pattern=QUANTITY)
    """Size of a worker's /dev/shm, part of its memory: NCCL needs more than the 64 MiB of a container."""
    deadline: Further[Cluster[str]] = Field(default="", pattern=r"^([1-9][0-9]*[smhd])?$")
    """Longest time that a TrainJob may run, 12h or 7d; time in a queue does not count. Empty: none."""
