"""Runs that an event starts: EventBus, EventSources and a Sensor that creates Workflows (Argo Events).

The Sensor creates the Workflow as a Kubernetes object rather than by the `argo` command that Argo
Events brings along, so any version of Argo will do. A run is named after its event: one that is
delivered twice finds its name taken and trains once.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from steps.errors import UsageError
from steps.params import is_secret, type_name
from workflows import access, security, values
from workflows.objects import kubernetes_object, labels
from workflows.pipeline import SFT, Parameter, Pipeline
from workflows.settings import Events, KeyFilter, Minio, Settings, Sqs, Webhook
from workflows.unattended import refusals_of_example, template_label, workflow_spec

SENSOR, SOURCES = "sft-sensor", "sft-event-sources"
"""Service accounts: of the Sensor, which creates Workflows, and of the sources, which may do nothing."""

_API = "argoproj.io/v1alpha1"
_CREATE_WORKFLOWS = access.Rule("argoproj.io", ("workflows",), ("create",))
_EVENT = "run"  # each source has one kind of event, of this name

# They decide what a pod is; whoever may post an event shall not.
_SHAPES = ("gpu", "cpu", "memory", "launcher", "cluster_auth", "env_vars", "labels", "annotations")

_BUS_CONTAINERS = ("containerTemplate", "reloaderContainerTemplate", "metricsContainerTemplate")

_OBJECT_URI = "s3://bucket/key"
_MINIO_KEY = "notification.0.s3.object.key"
_SQS_KEY = "body.Records.0.s3.object.key"

# Whoever may post an event or upload an object shall write neither Argo's tags nor Kubernetes'
# $(VARIABLES) into the run, for these would show a secret; Argo cannot pass control characters on.
_TEXT = r"[^{}$\x00-\x1f\x7f]"
_ADDRESS = rf"^((hf|s3|https?|pvc)://|/){_TEXT}+$"
# A key comes URL-encoded. Beside the above it may not hold what an address gives a meaning to: the
# wildcards, and a blank before a slash or a scheme, which would begin a second address.
_REST = r"[46][0-9A-Fa-f]|5[0-9AC-Fac-f]|7[0-9ACDEacde]|[89A-Fa-f][0-9A-Fa-f]"
_ANY = rf"(?:[^{{$%+*?\[\x00-\x1f\x7f]|%(?:2[1-35-9B-Fb-f]|3[0-9A-Ea-e]|{_REST}))"
_NO_COLON = rf"(?:[^:{{$%+*?\[\x00-\x1f\x7f]|%(?:2[1-35-9B-Fb-f]|3[0-9B-Eb-e]|{_REST}))"
_NO_SLASH = rf"(?:[^/:{{$%+*?\[\x00-\x1f\x7f]|%(?:2[1-35-9B-Eb-e]|3[0-9B-Eb-e]|{_REST}))"
_ENCODED = rf"^(?:{_ANY}*|(?:{_NO_COLON}|(?:\+|%20)+{_NO_SLASH})*)$"


@dataclass(frozen=True)
class Source:
    """A place that events come from, and how one of them becomes a run."""

    name: str
    spec: dict[str, Any]
    """Of its EventSource."""
    identity: str
    """Go expression of what tells this event from another: the same if it is delivered again."""
    filled: dict[str, dict[str, str]]
    """What fills a parameter, by its name: a key of the event's data, or a Go template."""
    example: str = ""
    """A value that fills them, where all are of one form."""
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """What an event must look like; any other is logged by the Sensor and dropped."""


def objects(settings: Settings, events: Events, pipeline: Pipeline = SFT) -> list[dict[str, Any]]:
    """Everything that starts runs by events; UsageError where an event could not start one."""
    sources = []
    if events.minio:
        sources.append(minio(events.minio, settings, pipeline))
    if events.sqs:
        sources.append(sqs(events.sqs, settings, pipeline))
    if events.webhook:
        sources.append(webhook(events.webhook, pipeline))
    if not sources:
        raise UsageError("events: name at least one of minio, sqs and webhook")
    return [
        *([bus(settings, events)] if events.bus.create else []),
        kubernetes_object("ServiceAccount", SOURCES, settings),
        *(event_source(source, settings) for source in sources),
        *access.allowed(SENSOR, settings, _CREATE_WORKFLOWS),
        sensor(sources, settings, events, pipeline),
    ]


def bus(settings: Settings, events: Events) -> dict[str, Any]:
    """The EventBus of the namespace; both sides find it by the name `default`."""
    made = kubernetes_object(
        "EventBus",
        "default",
        settings,
        version=_API,
        spec={
            "jetstream": {
                "version": events.bus.version,
                "replicas": events.bus.replicas,
                "securityContext": security.pod(settings),
                **{name: {"securityContext": security.RESTRICTED} for name in _BUS_CONTAINERS},
                # The default stream has three copies of each message, more than one server can keep.
                "streamConfig": f"replicas: {min(events.bus.replicas, 3)}\n",
                "persistence": {
                    "accessMode": "ReadWriteOnce",
                    "volumeSize": events.bus.volume_size,
                },
            }
        },
    )
    made["metadata"]["name"] = "default"
    return made


def minio(source: Minio, settings: Settings, pipeline: Pipeline) -> Source:
    """Objects that land in a bucket of a MinIO server."""
    return Source(
        name="minio",
        spec={
            "minio": {
                _EVENT: {
                    "endpoint": source.endpoint,
                    "insecure": source.insecure,
                    "bucket": {"name": source.bucket},
                    "events": ["s3:ObjectCreated:*"],
                    "filter": {"prefix": source.prefix, "suffix": source.marker or source.suffix},
                    **_keys(settings),
                }
            }
        },
        accepted=_accepted(source, _MINIO_KEY),
        **_object(
            source,
            "(index .Input.notification 0).s3",
            settings,
            pipeline,
            "events.minio.parameter",
        ),
    )


def sqs(source: Sqs, settings: Settings, pipeline: Pipeline) -> Source:
    """Objects that land in a bucket of AWS S3, told by the queue that the bucket notifies."""
    begin, end = (quote(text, safe="/") for text in (source.prefix, source.marker or source.suffix))
    key = f"^{re.escape(begin)}.*{re.escape(end)}$".replace("%20", r"\+")
    access_to_queue = {"roleARN": source.role_arn} if source.role_arn else _keys(settings)
    return Source(
        name="sqs",
        spec={
            "sqs": {
                _EVENT: {
                    "region": source.region,
                    "queue": source.queue,
                    "waitTimeSeconds": 20,
                    "jsonBody": True,
                    **access_to_queue,
                }
            }
        },
        accepted=[
            _matches("body.Records.0.eventName", "^(s3:)?ObjectCreated:"),
            _matches(_SQS_KEY, key),
            *_accepted(source, _SQS_KEY),
        ],
        **_object(
            source,
            "(index .Input.body.Records 0).s3",
            settings,
            pipeline,
            "events.sqs.parameter",
        ),
    )


def webhook(source: Webhook, pipeline: Pipeline) -> Source:
    """A POST with a bearer token and a JSON body."""
    filled: dict[str, dict[str, str]] = {}
    accepted = []
    for name, path in source.fields.items():
        parameter = _parameter(name, pipeline, "events.webhook.fields")
        if parameter.name in filled:
            raise UsageError(f"events.webhook.fields: two of them set {parameter.name}")
        key = f"body.{path}"
        filled[parameter.name] = {"dataKey": key}
        pattern = _ADDRESS if parameter.field_name.endswith("_uri") else f"^{_TEXT}*$"
        accepted.append(_matches(key, pattern))
    return Source(
        name="webhook",
        spec={
            "service": {"ports": [{"port": source.port}]},
            "webhook": {
                _EVENT: {
                    "port": str(source.port),
                    "endpoint": source.path,
                    "method": "POST",
                    "url": "",
                    "maxPayloadSize": 65536,
                    "authSecret": {"name": source.secret, "key": "token"},
                }
            },
        },
        identity=".Input.body.id | default (toJson .Input.body) | toString",
        filled=filled,
        accepted=accepted,
    )


def event_source(source: Source, settings: Settings) -> dict[str, Any]:
    """The EventSource."""
    return kubernetes_object(
        "EventSource",
        f"sft-{source.name}",
        settings,
        version=_API,
        spec={"template": _pod(SOURCES, settings), **source.spec},
    )


def sensor(
    sources: list[Source], settings: Settings, events: Events, pipeline: Pipeline
) -> dict[str, Any]:
    """The Sensor: a dependency and a trigger for each source."""
    return kubernetes_object(
        "Sensor",
        "sft",
        settings,
        version=_API,
        spec={
            "template": _pod(SENSOR, settings),
            "dependencies": [
                {
                    "name": source.name,
                    "eventSourceName": settings.named(f"sft-{source.name}"),
                    "eventName": _EVENT,
                    "filters": {"data": source.accepted} if source.accepted else None,
                }
                for source in sources
            ],
            "triggers": [trigger(source, settings, events, pipeline) for source in sources],
        },
    )


def trigger(
    source: Source, settings: Settings, events: Events, pipeline: Pipeline
) -> dict[str, Any]:
    """What the Sensor does with an event of the source: creates a Workflow from the template."""
    examples = dict.fromkeys(source.filled, source.example)
    spec = workflow_spec(
        settings, pipeline, events.parameters, "events.parameters", filled=examples
    )
    names = [each["name"] for each in spec["arguments"]["parameters"]]
    filled = [
        (
            {
                "dataTemplate": f"{settings.named('sft')}-{{{{ {source.identity} | sha256sum | trunc 20 }}}}"
            },
            "metadata.name",
        ),
        *(
            (value, f"spec.arguments.parameters.{names.index(name)}.value")
            for name, value in source.filled.items()
        ),
    ]
    workflow = kubernetes_object("Workflow", "sft", settings, version=_API, spec=spec)
    workflow["metadata"]["labels"] |= template_label(settings, pipeline)
    return {
        "template": {
            "name": source.name,
            "conditions": source.name,
            "k8s": {
                "operation": "create",
                "source": {"resource": workflow},
                "parameters": [
                    {"src": {"dependencyName": source.name, **value}, "dest": place}
                    for value, place in filled
                ],
            },
        },
        # Without it neither the retries nor the rate count: the event would be over at once.
        "atLeastOnce": True,
        "retryStrategy": {"steps": 5, "duration": "10s", "factor": 3},
        "rateLimit": {"unit": "Hour", "requestsPerUnit": events.per_hour},
    }


def _object(
    source: KeyFilter, found: str, settings: Settings, pipeline: Pipeline, where: str
) -> dict[str, Any]:
    """How an object's event becomes a run; `found` is the Go expression of its description."""
    # Keys come URL-encoded, a blank as a plus sign.
    key = f'(urlParse (printf "/%s" (replace "+" "%20" {found}.object.key))).path'
    if source.marker:
        key = f'{key} | trimSuffix "{source.marker}"'
    parameter = _parameter(source.parameter, pipeline, where)
    refused = refusals_of_example(settings, pipeline, parameter, _OBJECT_URI)
    values.refuse([f"{where}: {problem}" for problem in refused])
    return {
        "identity": f'printf "%v/%v/%v" {found}.bucket.name {found}.object.key {found}.object.sequencer',
        "example": _OBJECT_URI,
        "filled": {
            parameter.name: {"dataTemplate": f"s3://{{{{ {found}.bucket.name }}}}{{{{ {key} }}}}"}
        },
    }


def _accepted(source: KeyFilter, path: str) -> list[dict[str, Any]]:
    """Keys that are passed on, of a marker only those that have just its name."""
    found = [_matches(path, _ENCODED)]
    if source.marker:
        found.append(_matches(path, rf"(^|/|%2[Ff]){re.escape(source.marker)}$"))
    return found


def _matches(path: str, pattern: str) -> dict[str, Any]:
    return {"path": path, "type": "string", "value": [pattern]}


def _parameter(name: str, pipeline: Pipeline, where: str) -> Parameter:
    """The parameter that an event fills, by any of its names."""
    found = {each: names.parameter for names in values.names(pipeline) for each in names.every()}
    parameter = found.get(name.replace("-", "_"))
    if parameter is None:
        raise UsageError(f"{where}: {values.unknown(name, found)}")
    if type_name(parameter.field) == "dict":
        raise UsageError(
            f"{where}: {name}: an event cannot set it: its braces might be a tag of Argo's"
        )
    if is_secret(parameter.field) or parameter.field_name in _SHAPES:
        raise UsageError(
            f"{where}: {name}: an event may not set it, for it decides what a pod is or may see"
        )
    return parameter


def _keys(settings: Settings) -> dict[str, Any]:
    secret = settings.secret("s3-secret")
    return {
        "accessKey": {"name": secret, "key": "AWS_ACCESS_KEY_ID"},
        "secretKey": {"name": secret, "key": "AWS_SECRET_ACCESS_KEY"},
    }


def _pod(account: str, settings: Settings) -> dict[str, Any]:
    """Pods of Argo Events, as closed as ours."""
    return {
        "metadata": {"labels": labels(settings)},
        "serviceAccountName": settings.named(account),
        "securityContext": security.pod(settings),
        "container": {
            "securityContext": security.CONTAINER,
            "resources": {
                "requests": {"cpu": "50m", "memory": "64Mi"},
                "limits": {"cpu": "500m", "memory": "256Mi"},
            },
        },
        "imagePullSecrets": [{"name": name} for name in settings.images.pull_secrets] or None,
    }
