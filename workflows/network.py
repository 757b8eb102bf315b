"""What a run's pods may talk to: nothing, but for what each step needs."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from steps.train.params import WORKER
from workflows import access
from workflows.argo import SUMMARY
from workflows.objects import kubernetes_object, labels
from workflows.pipeline import SFT, Pipeline
from workflows.settings import Settings
from workflows.storage import CLAIM

_API = "networking.k8s.io/v1"
_API_SERVER = (443, 6443)  # the executor of every pod reports to it
_PORT = {"http": 80, "https": 443}
# A policy sees the port of the pod behind the service, which is 5353 on OpenShift.
_DNS = {"kubernetes": (53,), "openshift": (53, 5353)}


def policies(settings: Settings, pipeline: Pipeline = SFT) -> list[dict[str, Any]]:
    """A default of no traffic at all, then one policy a step."""
    closed = kubernetes_object(
        "NetworkPolicy",
        "sft-default-deny",
        settings,
        version=_API,
        spec={"podSelector": _pods(settings), "policyTypes": ["Ingress", "Egress"]},
    )
    opened = [step.name for step in pipeline.steps] + [SUMMARY]
    if settings.storage.per_run:
        opened.append(CLAIM)
    workers = [_of_workers(settings)] if access.any_submits(pipeline, settings) else []
    return [closed, *(_opened(name, settings) for name in opened), *workers]


def _of_workers(settings: Settings) -> dict[str, Any]:
    """A TrainJob's pods talk to one another, on whatever ports, and to what the train step may reach."""
    pods = {
        "matchLabels": {**labels(settings), "app.kubernetes.io/component": WORKER},
    }
    ports = sorted({*settings.network.ports.get("train", []), *_proxy_ports(settings)})
    return kubernetes_object(
        "NetworkPolicy",
        "sft-train-worker",
        settings,
        version=_API,
        spec={
            "podSelector": pods,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": pods}]}],
            "egress": [
                {"to": [{"podSelector": pods}]},
                _dns(settings),
                *([_to(settings.network.allow_cidrs, ports)] if ports else []),
            ],
        },
    )


def _opened(component: str, settings: Settings) -> dict[str, Any]:
    named = settings.network.ports.get(component, [])
    ports = sorted({*named, *_proxy_ports(settings)})
    return kubernetes_object(
        "NetworkPolicy",
        f"sft-{component}",
        settings,
        version=_API,
        spec={
            "podSelector": _pods(settings, component),
            "policyTypes": ["Egress"],
            "egress": [
                _dns(settings),
                _to(settings.network.api_cidrs, _API_SERVER),
                *([_to(settings.network.allow_cidrs, ports)] if ports else []),
            ],
        },
    )


def _dns(settings: Settings) -> dict[str, Any]:
    return {
        "ports": [
            {"port": port, "protocol": name}
            for port in _DNS[settings.platform]
            for name in ("UDP", "TCP")
        ]
    }


def _to(cidrs: Iterable[str], ports: Iterable[int]) -> dict[str, Any]:
    # Some network plug-ins do not count pods of the cluster among an ipBlock's addresses.
    return {
        "to": [*({"ipBlock": {"cidr": cidr}} for cidr in cidrs), {"namespaceSelector": {}}],
        "ports": [{"port": port, "protocol": "TCP"} for port in ports],
    }


def _proxy_ports(settings: Settings) -> set[int]:
    if not settings.proxy:
        return set()
    found = [urlsplit(each) for each in (settings.proxy.http, settings.proxy.https) if each]
    return {address.port or _PORT[address.scheme] for address in found}


def _pods(settings: Settings, component: str = "") -> dict[str, Any]:
    """Pods of runs, which Argo marks; those of Argo Events, with the same label of ours, are not meant."""
    named = {"app.kubernetes.io/component": component} if component else {}
    return {
        "matchLabels": {**labels(settings), **named},
        "matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}],
    }
