"""The TrainJob that is sent: what it says, and the two shapes in which Kubeflow Trainer wants it said.

v2.1    labels of job and pods in `spec`, all else by `podTemplateOverrides`; OpenShift AI 3 has it
v2.2    `runtimePatches`, which also carry the security context

The deadline is not sent: 2.2 would count from the making of the job, nodes or none, and 2.1 knows none.
Who follows the job keeps it.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from steps import claims
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.train.backend import Job
from steps.train.params import TRAIN_ENV_PREFIX, WORKER, TrainParams, WorkerPod
from steps.train.variables import environment

Api = Literal["v2.1", "v2.2"]
Object = dict[str, Any]

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"
"""Replicated job and container that Trainer gives the training's command to."""
FINGERPRINT = "sft.fingerprint"
"""Annotation: of the result that the TrainJob makes. One with another is of another training."""
SENT = "sft.sent"
"""Annotation: a digest of what was asked for, which those who queue a job change in the job."""
QUEUE = "kueue.x-k8s.io/queue-name"
RESERVED = ("PET_", "SFT_")
"""Variables that begin so are set by Trainer and by us."""

_MANAGER = "sft.pipeline/train"
# JobSet makes pods `<name>-node-0-<index>-<five letters>` and refuses more than 63 letters, long
# after the TrainJob was accepted: room for an index of four digits.
_LONGEST_NAME = 45
_TMP, _SHM = "/tmp", "/dev/shm"  # noqa: S108
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PAIR = r"[A-Za-z0-9][-\w./]*="

# An arbitrary user has no entry in /etc/passwd and the root file system is read-only; a runtime may
# have sent the caches elsewhere. What is trained lies on the volume: nothing is fetched.
_ENVIRONMENT = {
    "HOME": _TMP,
    "USER": "sft",
    "PYTHONUNBUFFERED": "1",
    "XDG_CACHE_HOME": f"{_TMP}/.cache",
    "HF_HOME": f"{_TMP}/.cache/huggingface",
    "TRITON_CACHE_DIR": f"{_TMP}/.triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{_TMP}/.inductor",
    "HF_HUB_OFFLINE": "1",
}
_RESTRICTED: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER: Object = {
    **_RESTRICTED,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Runtime(_Part):
    """The runtime that a TrainJob refers to."""

    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    name: str


class Volume(_Part):
    """A volume and where the workers see it."""

    name: str
    source: Object
    path: str
    read_only: bool = False


class Pod(_Part):
    """What the workers' pods have beside what the runtime says."""

    labels: dict[str, str]
    annotations: dict[str, str]
    service_account: str
    image_pull_secrets: list[str]
    node_selector: dict[str, str]
    tolerations: list[Object]
    volumes: list[Volume]
    security: Object

    def spec(self, *, is_secured: bool) -> Object:
        """A pod's spec, as both shapes take it; `is_secured` with what only one of them takes."""
        container: Object = {
            "name": NODE,
            "volumeMounts": [
                {"name": volume.name, "mountPath": volume.path}
                | ({"readOnly": True} if volume.read_only else {})
                for volume in self.volumes
            ],
        }
        spec: Object = {
            "serviceAccountName": self.service_account,
            "imagePullSecrets": [{"name": name} for name in self.image_pull_secrets],
            "nodeSelector": self.node_selector,
            "tolerations": self.tolerations,
            "volumes": [{"name": volume.name, **volume.source} for volume in self.volumes],
        }
        if is_secured:
            container["securityContext"] = _CONTAINER
            spec["securityContext"] = self.security
        return {name: value for name, value in spec.items() if value} | {"containers": [container]}


class TrainJob(_Part):
    """A TrainJob, whichever shape it is sent in."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=_LONGEST_NAME)
    labels: dict[str, str]
    annotations: dict[str, str]
    owner: Object | None
    runtime: Runtime
    nodes: PositiveInt
    processes: PositiveInt
    image: str = Field(min_length=1, max_length=500)
    command: list[str]
    args: list[str] = Field(min_length=1)
    """Never left out: the runtime's own would follow our command."""
    env: list[Object]
    resources: dict[str, str]
    pod: Pod

    def rendered(self, api: Api) -> Object:
        """The object as that version of Trainer takes it."""
        metadata: Object = {
            "name": self.name,
            "labels": self.labels,
            "annotations": self.annotations,
        }
        if self.owner:
            metadata["ownerReferences"] = [self.owner]
        spec: Object = {
            "runtimeRef": {"apiGroup": GROUP, **self.runtime.model_dump()},
            "trainer": {
                "image": self.image,
                "command": self.command,
                "args": self.args,
                "env": self.env,
                # Without these two Trainer gives the workers no PET_* variables, or counts the CPUs.
                "numNodes": self.nodes,
                "numProcPerNode": self.processes,
                "resourcesPerNode": {"requests": self.resources, "limits": self.resources},
            },
            **(self._overrides() if api == "v2.1" else self._patches()),
        }
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainJob",
            "metadata": metadata,
            "spec": spec,
        }

    def _overrides(self) -> Object:
        marks = self._marks()
        pods = {"metadata": marks, "spec": self.pod.spec(is_secured=False)}
        return {**marks, "podTemplateOverrides": [{"targetJobs": [{"name": NODE}], **pods}]}

    def _patches(self) -> Object:
        marks = self._marks()
        pod = {"metadata": marks, "spec": self.pod.spec(is_secured=True)}
        job = {"name": NODE, "template": {"metadata": marks, "spec": {"template": pod}}}
        jobs = {"metadata": marks, "spec": {"replicatedJobs": [job]}}
        patch = {"manager": _MANAGER, "trainingRuntimeSpec": {"template": jobs}}
        return {"runtimePatches": [patch]}

    def _marks(self) -> Object:
        found = {"labels": self.pod.labels, "annotations": self.pod.annotations}
        return {name: value for name, value in found.items() if value}


def render(job: Job, run: Run, api: Api, runtime: Runtime, owner: Object | None = None) -> Object:
    """The TrainJob of this training. Raises UsageError where the run has no place or image for it.

    `owner` is a reference to the object whose end is the TrainJob's too.
    """
    return train_job(job, run, runtime, owner).rendered(api)


def train_job(job: Job, run: Run, runtime: Runtime, owner: Object | None = None) -> TrainJob:
    """What the parameters and the engine say of the training's TrainJob."""
    params = job.params
    refuse_homeless(run)
    pod = _given(run)
    labels = _labels(params, run, pod)
    annotations = pod.annotations | pairs(params.annotations)
    return TrainJob(
        name=name(run),
        labels=labels | ({QUEUE: params.queue} if params.queue else {}),
        annotations=annotations | ({FINGERPRINT: run.fingerprint} if run.fingerprint else {}),
        owner=owner,
        runtime=runtime,
        nodes=params.workers,
        processes=processes(params),
        image=run.bound.worker_image,
        command=["python", "-m", "steps.train.worker"],
        args=[_literal(str(job.file))],
        env=_env(params, run, pod),
        resources={
            "cpu": params.cpu,
            "memory": params.memory,
            params.gpu_resource: str(params.gpu),
        },
        pod=Pod(
            labels=labels,
            annotations=annotations,
            service_account=pod.service_account,
            image_pull_secrets=pod.image_pull_secrets,
            node_selector=pairs(params.node_selector),
            tolerations=[
                {key: value for key, value in each.model_dump().items() if value}
                for each in params.tolerations
            ],
            volumes=_volumes(job, run, pod),
            security=_security(pod),
        ),
    )


def name(run: Run) -> str:
    """The TrainJob's name: that of the run, and a digest of the folder that it trains in.

    So a retried step finds its own job, and no two jobs write to one folder: a workflow that is
    submitted again under its name meets what the one before has left.
    """
    place = run.bound.volume_claim, run.bound.volume_path.strip("/"), str(run.workspace.root)
    digest = hashlib.sha256("\n".join((run.name, *place)).encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
    if not readable[:1].isalpha():
        readable = f"sft-{readable}"
    return f"{readable[: _LONGEST_NAME - 9].rstrip('-')}-{digest}"


def processes(params: TrainParams) -> int:
    """Training processes of a worker: one a GPU, unless the parameter says fewer."""
    return params.gpu if params.num_procs == "auto" else int(params.num_procs)


def deadline(params: TrainParams) -> int | None:
    """Seconds that the TrainJob may run; none where there is no limit."""
    return int(params.deadline[:-1]) * _SECONDS[params.deadline[-1]] if params.deadline else None


def pairs(text: str) -> dict[str, str]:
    """`k=v,k=v` as a mapping; a comma that no `k=` follows belongs to the value.

    Raises UsageError for what is none.
    """
    found = {}
    text = text.strip(", \n")
    for pair in re.split(rf"[,\s]*,\s*(?={_PAIR})", text) if text else []:
        key, separator, value = pair.strip().partition("=")
        if not separator:
            raise UsageError(f"{pair!r} is no k=v")
        found[key.strip()] = value.strip()
    return found


def refuse_homeless(run: Run) -> None:
    """Raise UsageError where the engine has not said which image trains, and on which claim."""
    problems = []
    if not run.bound.worker_image:
        problems.append(
            "--worker-image is empty: name the image of the training pods (sft render takes it "
            "from images.registry and images.tag of sft.yaml)"
        )
    if not run.bound.volume_claim:
        problems.append(
            "--volume-claim is empty: the training pods need the claim that holds the workspace, "
            "and --volume-path, where in it that is"
        )
    elif run.bound.volume_claim not in claims.mounted(run):
        problems.append(
            f"--volume-path {run.bound.volume_path}: the workspace {run.workspace.root} does not "
            "end so, and training pods must see it under the same path"
        )
    if problems:
        raise UsageError("\n  ".join(problems))


def _given(run: Run) -> WorkerPod:
    try:
        return WorkerPod.model_validate(run.bound.worker_pod)
    except ValidationError as error:
        problems = [
            f"--worker-pod: {'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors()
        ]
        raise UsageError("\n  ".join(problems)) from None


def _labels(params: TrainParams, run: Run, pod: WorkerPod) -> dict[str, str]:
    """Of the job and its pods; the queue is the job's alone, or its pods would queue once more."""
    engine = {key: value for key, value in pod.labels.items() if key != QUEUE}
    part_of = engine.get("app.kubernetes.io/part-of", "sft")
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.name)[:63].strip("-_.")
    own = {"part-of": part_of, "component": WORKER, "instance": readable}
    return {
        **engine,
        **pairs(params.labels),
        **{f"app.kubernetes.io/{key}": value for key, value in own.items()},
    }


def _env(params: TrainParams, run: Run, pod: WorkerPod) -> list[Object]:
    """Each variable once: the engine's, keys of `train-env`, the parameter's, and those that are ours."""
    keys = [
        variable.removeprefix(TRAIN_ENV_PREFIX)
        for variable in sorted(os.environ)
        if variable.startswith(TRAIN_ENV_PREFIX)
    ]
    given: dict[str, str | None] = {**_ENVIRONMENT, **pod.env}
    given |= dict.fromkeys(key for key in keys if not key.startswith(RESERVED))
    given |= environment(params.env_vars)[0]
    # Where the runtime has no torch policy there are no PET_* variables to find one another by.
    given |= {
        "SFT_NODES": str(params.workers),
        "SFT_MASTER_ADDR": f"{name(run)}-{NODE}-0-0.{name(run)}",
    }
    return [
        {"name": variable, "value": _literal(value)}
        if value is not None
        else {
            "name": variable,
            "valueFrom": {
                "secretKeyRef": {"name": pod.env_secret, "key": variable, "optional": True}
            },
        }
        for variable, value in given.items()
    ]


def _volumes(job: Job, run: Run, pod: WorkerPod) -> list[Volume]:
    mounts = claims.mounted(run)
    claim = run.bound.volume_claim
    found = [
        _claim("sft-runs", claim, mounts[claim]),
        Volume(name="sft-tmp", source={"emptyDir": {"sizeLimit": pod.scratch}}, path=_TMP),
        Volume(
            name="sft-shm",
            source={"emptyDir": {"medium": "Memory", "sizeLimit": job.params.shm_size}},
            path=_SHM,
        ),
    ]
    if not job.base.is_relative_to(mounts[claim]):
        others = [name for name, folder in mounts.items() if job.base.is_relative_to(folder)]
        if not others:
            raise UsageError(
                f"--model: the base model lies at {job.base}, on no claim that training pods can "
                f"mount (there are: {', '.join(sorted(mounts))}); put it on one of them, or name it "
                "by hub ID"
            )
        found.append(_claim("sft-base-model", others[0], mounts[others[0]], read_only=True))
    if pod.certificates:
        item = {"key": pod.certificates.key, "path": Path(pod.certificates.path).name}
        found.append(
            Volume(
                name="sft-certificates",
                source={"configMap": {"name": pod.certificates.config_map, "items": [item]}},
                path=str(Path(pod.certificates.path).parent),
                read_only=True,
            )
        )
    return found


def _claim(name: str, claim: str, folder: Path, *, read_only: bool = False) -> Volume:
    """A claim under the path that it has here, so that paths mean the same in both pods."""
    source: Object = {"claimName": claim} | ({"readOnly": True} if read_only else {})
    return Volume(
        name=name,
        source={"persistentVolumeClaim": source},
        path=str(folder),
        read_only=read_only,
    )


def _security(pod: WorkerPod) -> Object:
    if pod.user is None:
        return _RESTRICTED
    return {
        **_RESTRICTED,
        "runAsUser": pod.user,
        "runAsGroup": pod.user,
        "fsGroup": pod.user,
        "fsGroupChangePolicy": "OnRootMismatch",
    }


def _literal(text: str) -> str:
    """Text that Kubernetes leaves as it is: `$(NAME)` would be a variable."""
    return text.replace("$(", "$$(")
