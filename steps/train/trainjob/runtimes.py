"""What is at the cluster already: the runtime, the shape that its Trainer wants, the run's own object."""

import logging
import os
from collections.abc import Callable

from steps.entrypoint import Run
from steps.errors import (
    ConfigError,
    ExistsError,
    ForbiddenError,
    NotServedError,
    StepError,
    TransientError,
)
from steps.train.params import TrainParams
from steps.train.trainjob import objects
from steps.train.trainjob.cluster import Cluster
from steps.train.trainjob.manifest import GROUP, NODE, PLURAL, VERSION, Api, Object, Runtime

log = logging.getLogger(__name__)

_SERVED: dict[str, Api] = {"runtimePatches": "v2.2", "podTemplateOverrides": "v2.1"}
"""Field of a TrainJob by the shape that it tells."""
_STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
"""Label of the replicated job that Trainer gives the training's image and command to."""
_POLICIES = ("mpi", "jax", "xgboost", "flux")


def find(cluster: Cluster, params: TrainParams) -> Runtime:
    """The runtime of that name: the cluster's, or else the namespace's.

    Raises ConfigError that lists those that are there, or says why one of that name cannot train;
    ForbiddenError where it may be among those that cannot be seen.
    """
    hidden: ForbiddenError | None = None
    there: list[str] = []
    for kind in ("ClusterTrainingRuntime", "TrainingRuntime"):
        try:
            runtimes = _list(cluster, kind)
        except NotServedError as error:  # before anything was sent there is nothing to lose
            raise ConfigError(str(error)) from error
        except ForbiddenError as error:
            hidden = hidden or error
            log.warning("%s; looking on without", error)
            continue
        for runtime in runtimes:
            if runtime["metadata"]["name"] == params.runtime:
                _check(runtime, f"{cluster.where}: {kind} {params.runtime}")
                return Runtime.model_validate({"kind": kind, "name": params.runtime})
        there += [f"{kind} {runtime['metadata']['name']}" for runtime in runtimes]
    if hidden:
        raise hidden
    raise ConfigError(
        f"{cluster.where}: there is no runtime {params.runtime!r} in the cluster or in namespace "
        f"{cluster.namespace}; there are: {', '.join(there) or 'none'}; name one by --runtime, or "
        "install this project's: kubectl apply -k manifests/trainer"
    )


def shape(cluster: Cluster, params: TrainParams, rendered: Callable[[Api], Object]) -> Api:
    """The shape that the Trainer there takes: as the parameter says, or by asking.

    The definition of TrainJobs tells it; who may not read that learns it from a dry run.
    """
    if params.trainer_api != "auto":
        return params.trainer_api
    name = f"{PLURAL}.{GROUP}"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    try:
        definition = objects.get(cluster, f"get CustomResourceDefinition {name}", path)
    except ForbiddenError:
        return _by_dry_run(cluster, rendered)
    for version in definition["spec"]["versions"]:
        if version["name"] == VERSION:
            schema = version["schema"]["openAPIV3Schema"]
            fields = schema["properties"]["spec"]["properties"]
            for field, found in _SERVED.items():
                if field in fields:
                    return found
    raise _too_old(cluster)


def owner(cluster: Cluster, run: Run) -> Object | None:
    """A reference to the engine's object of this run, which the TrainJob shall not outlive.

    It is read off this pod: a reference to an object that the cluster does not have, as where the
    credentials lead to another one, would have the TrainJob deleted at once.
    """
    pod = os.environ.get("POD_NAME") or os.environ.get("HOSTNAME", "")
    if not run.bound.run_uid or not pod:
        return None
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}"
    try:
        found = objects.get(cluster, f"get Pod {pod}", path)
    except TransientError:
        raise  # without an owner the TrainJob would outlive its run; who asks again learns it
    except StepError as error:
        log.warning("the TrainJob will not be deleted with its run: %s", error)
        return None
    for reference in found["metadata"].get("ownerReferences", []):
        if reference["uid"] == run.bound.run_uid:
            return {key: reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    return None


def _list(cluster: Cluster, kind: str) -> list[Object]:
    scope = "" if kind.startswith("Cluster") else f"namespaces/{cluster.namespace}/"
    path = f"/apis/{GROUP}/{VERSION}/{scope}{kind.lower()}s"
    items: list[Object] = objects.get(cluster, f"list {kind}s", path)["items"]
    return items


def _check(runtime: Object, where: str) -> None:
    """Raise ConfigError for a runtime whose pods are not one group of training nodes."""
    spec = runtime["spec"]
    found = spec.get("mlPolicy") or {}
    policies = [policy for policy in _POLICIES if policy in found]
    if policies:
        raise ConfigError(
            f"{where}: is made for {policies[0]}, not for torch: choose another --runtime"
        )
    if "elasticPolicy" in (found.get("torch") or {}):
        raise ConfigError(
            f"{where}: mlPolicy.torch.elasticPolicy lets the number of nodes change, and a training "
            "here has as many as --workers says: choose another --runtime, or take it out"
        )
    jobs = spec["template"]["spec"].get("replicatedJobs", [])
    names = [job["name"] for job in jobs]
    if NODE not in names:
        raise ConfigError(
            f"{where}: has no replicated job {NODE!r} to train in (there are: "
            f"{', '.join(names) or 'none'}): choose another --runtime"
        )
    if len(names) > 1:
        others = ", ".join(name for name in names if name != NODE)
        raise ConfigError(
            f"{where}: runs {others} beside the training, which need what this pipeline does itself: "
            "choose another --runtime"
        )
    labels = (jobs[0]["template"].get("metadata") or {}).get("labels") or {}
    if labels.get(_STEP) != "trainer":
        raise ConfigError(
            f"{where}: its replicated job {NODE!r} has no label {_STEP}=trainer, without which Trainer "
            "runs what the runtime says and not the training: choose another --runtime"
        )
    pod = jobs[0]["template"]["spec"]["template"]["spec"]
    if all(container["name"] != NODE for container in pod.get("containers", [])):
        raise ConfigError(
            f"{where}: has no container {NODE!r} to train in: choose another --runtime"
        )
    if "ttlSecondsAfterFinished" in spec["template"]["spec"]:
        log.warning(
            "%s: ttlSecondsAfterFinished removes what ran, whereupon Trainer runs it again: take it out",
            where,
        )


def _by_dry_run(cluster: Cluster, rendered: Callable[[Api], Object]) -> Api:
    for field, found in _SERVED.items():
        try:
            objects.create(cluster, rendered(found), dry=True)
        except ExistsError:
            pass  # this run's own, of an attempt before: its fields were known
        except ConfigError as error:
            if f'unknown field "spec.{field}' not in str(error):
                raise
            continue
        return found
    raise _too_old(cluster)


def _too_old(cluster: Cluster) -> ConfigError:
    return ConfigError(
        f"{cluster.where}: its Kubeflow Trainer is older than 2.1: TrainJobs there cannot be given a "
        "volume by --trainer-api v2.1 or v2.2; upgrade it"
    )
