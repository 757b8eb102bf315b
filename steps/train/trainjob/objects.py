"""A TrainJob and what Kubernetes makes of it, as the API has them: read, watched, created, deleted."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client

from steps.errors import ExistsError, NotThereError, StepError, TooLargeError
from steps.train.trainjob.cluster import TIMEOUT, Cluster
from steps.train.trainjob.manifest import GROUP, NODE, PLURAL, VERSION, Object

_JOBSET, _INDEX = "jobset.sigs.k8s.io", "batch.kubernetes.io/job-completion-index"
# By the resource's version: Kueue 0.16 and later, then those before.
_WORKLOADS = ("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1")
_SILENCE = 60  # seconds without a line, after which a log's connection may be dead


def find(cluster: Cluster, name: str) -> tuple[Object | None, str]:
    """The TrainJob, if it is there, and the version from which `wait_for_change` goes on."""
    # A list's version is the present one; that of an object which has long not changed is forgotten.
    found = get(
        cluster, f"get TrainJob {name}", _trainjobs(cluster), fieldSelector=f"metadata.name={name}"
    )
    items = found["items"]
    return (items[0] if items else None), str(found["metadata"].get("resourceVersion", ""))


def wait_for_change(cluster: Cluster, name: str, version: str, seconds: int) -> None:
    """Return when the TrainJob has changed since `version`, or when so many seconds are over."""
    asked = {
        "watch": "true",
        "fieldSelector": f"metadata.name={name}",
        "resourceVersion": version,
        "timeoutSeconds": str(seconds),
    }
    timeout = (TIMEOUT[0], seconds + TIMEOUT[1])
    doing = f"watch TrainJob {name}"
    # What has changed is looked up: a watch that the server ends (410) says no more than one event.
    with _answer(cluster, doing, _trainjobs(cluster), asked, timeout, fine=(410,)) as answer:
        next(answer.stream(), None)


def create(cluster: Cluster, manifest: Mapping[str, Any], *, dry: bool = False) -> Object:
    """The TrainJob as it was created (ExistsError); what the server does not know is refused.

    A dry one is held against all that a real one is, and not kept.
    """
    api: Any = client.CustomObjectsApi(cluster.api)
    doing = f"{'try out' if dry else 'create'} TrainJob {manifest['metadata']['name']}"
    try:
        with cluster.errors(doing):
            made = api.create_namespaced_custom_object(
                GROUP,
                VERSION,
                cluster.namespace,
                PLURAL,
                dict(manifest),
                field_validation="Strict",
                _request_timeout=TIMEOUT,
                **({"dry_run": "All"} if dry else {}),
            )
    except TooLargeError as error:
        raise TooLargeError(f"{error}; {_weights(manifest)}") from error
    return cluster.checked(doing, made)


def _weights(manifest: Mapping[str, Any]) -> str:
    """What makes a TrainJob large, the heaviest first, by the parameters that it comes from."""
    parts = {
        "--env-vars and the keys of train-env": manifest["spec"]["trainer"].get("env"),
        "--annotations": manifest["metadata"].get("annotations"),
        "--labels": manifest["metadata"].get("labels"),
    }
    sizes = sorted(((len(json.dumps(part)), name) for name, part in parts.items()), reverse=True)
    told = ", ".join(f"{name} {size:,}" for size, name in sizes)
    return (
        f"the TrainJob has {len(json.dumps(manifest)):,} bytes, with labels and annotations in it "
        f"several times; of them {told}: shorten these"
    )


def delete(cluster: Cluster, job: Object) -> None:
    """Have this very TrainJob deleted after all that it owns; it may be gone already."""
    metadata = job["metadata"]
    api: Any = client.CustomObjectsApi(cluster.api)
    options = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
    gone = (NotThereError, ExistsError)  # the latter where there is another one of that name
    doing = f"delete TrainJob {metadata['name']}"
    with contextlib.suppress(*gone), cluster.errors(doing):
        answer = api.delete_namespaced_custom_object(
            GROUP,
            VERSION,
            cluster.namespace,
            PLURAL,
            metadata["name"],
            body=options,
            _request_timeout=TIMEOUT,
        )
        cluster.checked(doing, answer)


def pods(cluster: Cluster, job: Object) -> list[Object]:
    """The job's workers, replaced ones too, the oldest first."""
    # A job of that name before this one may have pods that are still being deleted.
    found = pods_of(cluster, job["metadata"]["name"])
    return sorted((pod for pod in found if _created(pod) >= _created(job)), key=_created)


def pods_of(cluster: Cluster, name: str) -> list[Object]:
    """The workers of all jobs of that name, deleted ones too."""
    found = get(
        cluster,
        f"list pods of TrainJob {name}",
        f"/api/v1/namespaces/{cluster.namespace}/pods",
        labelSelector=f"{_JOBSET}/jobset-name={name},{_JOBSET}/replicatedjob-name={NODE}",
    )
    items: list[Object] = found["items"]
    return items


def rank(pod: Object) -> int:
    """Which node of the training the pod is."""
    return int((pod["metadata"].get("labels") or {}).get(_INDEX, 0))


def events(cluster: Cluster, job: Object, name: str) -> list[Object]:
    """The warnings about the object of that name since the job was created."""
    found = get(
        cluster,
        f"list events of TrainJob {job['metadata']['name']}",
        f"/api/v1/namespaces/{cluster.namespace}/events",
        fieldSelector=f"involvedObject.name={name}",
    )
    return [
        event
        for event in found["items"]
        if event.get("type") == "Warning" and _last_seen(event) >= _created(job)
    ]


def workload(cluster: Cluster, job: Object) -> Object | None:
    """What Kueue made of the job to queue it, where there is a Kueue, and it can be read."""
    for api in _WORKLOADS:
        path = f"/apis/{api}/namespaces/{cluster.namespace}/workloads"
        mark = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        with contextlib.suppress(StepError):  # without it less is told, and no more
            found = get(cluster, "list workloads", path, labelSelector=mark)
            return next(iter(found["items"]), None)
    return None


@contextlib.contextmanager
def log(cluster: Cluster, pod: str, **asked: str) -> Iterator[urllib3.BaseHTTPResponse]:
    """The worker's log as a stream of bytes.

    `asked` are parameters of the API; the client's own method for it does not know `sinceTime`.
    """
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/log"
    timeout = (TIMEOUT[0], _SILENCE)
    query = {"container": NODE, **asked}
    with _answer(cluster, f"read the log of pod {pod}", path, query, timeout) as answer:
        yield answer


def time_of(text: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(text)


def _trainjobs(cluster: Cluster) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{PLURAL}"


def _created(obj: Object) -> datetime:
    return time_of(obj["metadata"]["creationTimestamp"])


def _last_seen(event: Object) -> datetime:
    # Which of them is set depends on the API that the event was recorded by.
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    known = next((time for time in times if time), None)
    return time_of(known) if known else _created(event)


def get(cluster: Cluster, doing: str, path: str, **query: str) -> Object:
    """The object or list at that path of the API; `doing` as `Cluster.errors` has it."""
    with _answer(cluster, doing, path, query) as answer:
        text = answer.read().decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    return cluster.checked(doing, found)


@contextlib.contextmanager
def _answer(
    cluster: Cluster,
    doing: str,
    path: str,
    query: Mapping[str, str],
    timeout: tuple[float, float] = TIMEOUT,
    fine: tuple[int, ...] = (),
) -> Iterator[urllib3.BaseHTTPResponse]:
    with cluster.errors(doing), _raw(cluster, path, query, timeout, fine) as answer:
        yield answer


@contextlib.contextmanager
def _raw(
    cluster: Cluster,
    path: str,
    query: Mapping[str, str],
    timeout: tuple[float, float] = TIMEOUT,
    fine: tuple[int, ...] = (),
) -> Iterator[urllib3.BaseHTTPResponse]:
    """The answer as JSON or text, whatever models the client's version has of it (ApiException)."""
    api: Any = cluster.api
    headers = dict(api.default_headers)
    for login in api.configuration.auth_settings().values():
        headers[login["key"]] = login["value"]
    answer = api.rest_client.pool_manager.request(
        "GET",
        f"{api.configuration.host}{path}?{urlencode(query)}",
        headers=headers,
        preload_content=False,
        timeout=urllib3.Timeout(connect=timeout[0], read=timeout[1]),
    )
    with answer:
        # A log is plain text, all else JSON: a page is of something in between.
        is_page = "html" in answer.headers.get("Content-Type", "")
        if is_page or (not 200 <= answer.status < 300 and answer.status not in fine):
            raise client.ApiException(http_resp=answer)
        yield answer
