"""Kubeflow Trainer with what is below it, in small: a TrainJob becomes pods, one step at a time.

What the Trainer (2.1 to 2.3), JobSet, the Job controller, the kubelet and the garbage collector do to
the objects, when a test says so: names, labels, owners, conditions and their order are theirs.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.argo_schemas import FOLDER
from tests.servers.kubernetes import Kind, KubernetesServer, Object

NAMESPACE = "team"
GROUP = "trainer.kubeflow.org"
JOBSET = "jobset.sigs.k8s.io"


def kinds(version: str = "v2.3.0") -> tuple[Kind, ...]:
    """What a cluster with that Trainer knows; strict where SFT_SCHEMAS has its definitions."""
    return (
        Kind(GROUP, "v1alpha1", "trainjobs", "TrainJob", schema=_schema(version, "trainjobs")),
        Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet"),
        Kind("batch", "v1", "jobs", "Job"),
        Kind("", "v1", "pods", "Pod"),
        Kind("", "v1", "events", "Event"),
        Kind("kueue.x-k8s.io", "v1beta1", "workloads", "Workload"),
        Kind(GROUP, "v1alpha1", "trainingruntimes", "TrainingRuntime"),
        Kind(GROUP, "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", False),
    )


def _schema(version: str, plural: str) -> Object:
    if not FOLDER:
        return {}
    path = Path(FOLDER) / "trainer" / f"kubeflow-trainer-{version}" / f"{GROUP}_{plural}.yaml"
    crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    found: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Trainer:
    """The controllers, for the one TrainJob of that name."""

    api: KubernetesServer
    name: str
    created: int = 0
    """TrainJobs of that name so far."""

    @property
    def job(self) -> Object:
        """The TrainJob as it is."""
        return self.api.get("trainjobs", self.name, NAMESPACE)

    def has_job(self) -> bool:
        """Whether there is one."""
        return any(
            obj["metadata"]["name"] == self.name for obj in self.api.all("trainjobs", NAMESPACE)
        )

    def submitted(self) -> None:
        """Wait until there is a TrainJob that was not there before."""
        known = self.created
        self.api.wait_for(lambda: self.has_job() and self.api.created("trainjobs") > known)
        self.created = self.api.created("trainjobs")

    def make(self, nodes: int = 1) -> None:
        """JobSet, Job and pods, which wait for a node."""
        self.make_job()
        for index in range(nodes):
            self.pod(index)

    def make_job(self) -> None:
        """JobSet and Job, without a pod yet."""
        owner = self._owner("trainjobs", self.name)
        self._create("jobsets", self.name, ownerReferences=[owner])
        owner = self._owner("jobsets", self.name)
        self._create("jobs", f"{self.name}-node-0", ownerReferences=[owner])
        self.status(active=1)

    def pod(self, index: int, suffix: str = "abcde") -> str:
        """A pod for that node; its name."""
        name = f"{self.name}-node-0-{index}-{suffix}"
        labels = {
            f"{JOBSET}/jobset-name": self.name,
            f"{JOBSET}/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        owner = self._owner("jobs", f"{self.name}-node-0")
        self._create(
            "pods", name, labels=labels, ownerReferences=[owner], status={"phase": "Pending"}
        )
        return name

    def cannot_schedule(self, pod: str, message: str) -> None:
        """The scheduler finds no node."""
        self._pod(pod, conditions=[condition("PodScheduled", "False", "Unschedulable", message)])

    def cannot_start(self, pod: str, reason: str, message: str) -> None:
        """The kubelet cannot make the container."""
        waiting = {"waiting": {"reason": reason, "message": message}}
        self._schedule(pod)
        self._pod(pod, containerStatuses=[container(waiting)])

    def run(self, pod: str) -> None:
        """The pod has a node, and its worker runs."""
        self._schedule(pod)
        self.api.start(pod, NAMESPACE)
        self._pod(
            pod, phase="Running", containerStatuses=[container({"running": {"startedAt": now()}})]
        )
        self.status(active=1, ready=1)

    def log(self, pod: str, *lines: str) -> None:
        """The worker writes lines."""
        for line in lines:
            self.api.log(pod, line + "\n", namespace=NAMESPACE)

    def restart(self, pod: str, exit_code: int, reason: str = "Error") -> None:
        """The worker ends, and the kubelet starts it again in the same pod."""
        self.api.end(pod, NAMESPACE)
        self.api.start(pod, NAMESPACE)
        count = self._container(pod)["restartCount"] + 1
        status = container(
            {"running": {"startedAt": now()}}, count, {"terminated": ended(exit_code, reason)}
        )
        self._pod(pod, containerStatuses=[status])

    def end(self, pod: str, exit_code: int, reason: str = "", message: str = "") -> None:
        """The worker ends, and with it the pod."""
        self.api.end(pod, NAMESPACE)
        reason = reason or ("Error" if exit_code else "Completed")
        state = {"terminated": ended(exit_code, reason, message)}
        phase = "Failed" if exit_code else "Succeeded"
        self._pod(pod, phase=phase, containerStatuses=[container(state)])

    def evict(self, pod: str, message: str) -> None:
        """The node takes the pod away."""
        self.api.end(pod, NAMESPACE)
        self._pod(
            pod,
            phase="Failed",
            reason="Evicted",
            message=message,
            containerStatuses=[container({"terminated": ended(137, "Error")})],
            conditions=[condition("DisruptionTarget", "True", "TerminationByKubelet", message)],
        )

    def complete(self) -> None:
        """All pods have ended well, and so has the TrainJob."""
        for pod in self._running():
            self.end(pod, 0)
        self.status(
            condition("Complete", "True", "AllJobsCompleted", "jobset completed successfully"),
            succeeded=1,
        )

    def fail(self, reason: str = "FailedJobs") -> None:
        """The TrainJob has failed; the pods that still ran are deleted."""
        for pod in self._running():
            self.api.delete("pods", pod, NAMESPACE)
        message = (
            f"jobset failed due to one or more job failures (first failed job: {self.name}-node-0)"
        )
        self.status(condition("Failed", "True", reason, message), failed=1)

    def refuse_runtime(self, reference: str) -> None:
        """The Trainer has no plugin for the runtime: nothing is made of the TrainJob."""
        refusal = condition(
            "Failed", "True", "TrainingRuntimeNotSupported", f"unsupported runtime: {reference}"
        )
        self._patch("trainjobs", self.name, {"status": {"conditions": [refusal]}})

    def suspend(self, *, suspended: bool) -> None:
        """Kueue holds the job, or lets it go; the condition of then stays."""
        reason, message = ("Suspended", "TrainJob is suspended") if suspended else ("Resumed", "TrainJob is resumed")  # fmt: skip
        status = {"conditions": [condition("Suspended", str(suspended), reason, message)]}
        self._patch("trainjobs", self.name, {"spec": {"suspend": suspended}, "status": status})

    def warn(self, kind: str, name: str, reason: str, message: str) -> None:
        """An event, as the newer API has them: with eventTime alone."""
        about = {"kind": kind, "name": name, "namespace": NAMESPACE}
        event = {
            "metadata": {"generateName": f"{name}."},
            "involvedObject": about,
            "type": "Warning",
            "reason": reason,
            "message": message,
            "firstTimestamp": None,
            "lastTimestamp": None,
            "eventTime": datetime.now(UTC).isoformat(),
        }
        self.api.create("events", event, NAMESPACE)

    def collect(self) -> None:
        """The garbage collector is done with the TrainJob that was deleted."""
        self.api.wait_for(lambda: self.job["metadata"].get("deletionTimestamp"))
        self.api.collect("trainjobs", self.name, NAMESPACE)

    def status(self, *conditions: Object, **counts: int) -> None:
        """What the TrainJob says of itself."""
        none = dict.fromkeys(("ready", "succeeded", "failed", "active", "suspended"), 0)
        known = (self.job.get("status") or {}).get("conditions", [])
        kept = [each for each in known if each["type"] not in {new["type"] for new in conditions}]
        status = {
            "conditions": [*kept, *conditions],
            "jobsStatus": [{"name": "node", **none, **counts}],
        }
        self._patch("trainjobs", self.name, {"status": status})

    def _running(self) -> list[str]:
        pods = self.api.all("pods", NAMESPACE)
        return [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]

    def _schedule(self, pod: str) -> None:
        self._pod(pod, conditions=[condition("PodScheduled", "True")])

    def _container(self, pod: str) -> Object:
        found: Object = self.api.get("pods", pod, NAMESPACE)["status"]["containerStatuses"][0]
        return found

    def _create(self, plural: str, name: str, **more: Any) -> None:
        status = more.pop("status", {})
        self.api.create(plural, {"metadata": {"name": name, **more}, "status": status}, NAMESPACE)

    def _owner(self, plural: str, name: str) -> Object:
        uid = self.api.get(plural, name, NAMESPACE)["metadata"]["uid"]
        return {"name": name, "uid": uid, "controller": True, "blockOwnerDeletion": True}

    def _pod(self, name: str, **status: Any) -> None:
        self._patch("pods", name, {"status": status})

    def _patch(self, plural: str, name: str, patch: Object) -> None:
        self.api.patch(plural, name, patch, NAMESPACE)


def condition(type_: str, status: str, reason: str = "", message: str = "") -> Object:
    """A condition as all objects have them."""
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": now(),
    }


def container(state: Object, restarts: int = 0, last: Object | None = None) -> Object:
    """The status of a worker's container."""
    return {"name": "node", "state": state, "lastState": last or {}, "restartCount": restarts}


def ended(exit_code: int, reason: str, message: str = "") -> Object:
    """The end of a container."""
    return {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": now()}
