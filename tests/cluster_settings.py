"""Clusters that the pipeline is rendered for: one setting or another of each kind."""

from typing import Any

from workflows import settings
from workflows.settings import Settings

SCHEDULE: dict[str, Any] = {
    "cron": ["0 2 * * *", "@every 6h"],
    "parameters": {"data_uri": "hf://org/chats", "on_conflict": "increment"},
}
EVENTS: dict[str, Any] = {
    "minio": {"endpoint": "minio:9000", "bucket": "datasets", "prefix": "sft/"},
    "sqs": {"queue": "landed", "region": "eu-west-1", "marker": "_SUCCESS", "prefix": "in/a b"},
    "webhook": {"fields": {"data_uri": "data.uri", "epochs": "epochs"}},
    "parameters": {"on_conflict": "increment"},
}

CLUSTERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "local": {"launcher": "local"},
    "openshift": {"platform": "openshift", "schedule": SCHEDULE, "events": EVENTS},
    "namespace and prefix": {
        "namespace": "team-a",
        "name_prefix": "dev-",
        "schedule": SCHEDULE,
        "events": EVENTS,
    },
    "cluster scope": {
        "scope": "cluster",
        "namespace": "sft",
        "schedule": SCHEDULE,
        "events": EVENTS,
    },
    "a namespace": {"namespace": "sft"},
    "the service account": {
        "cluster_auth": "service-account",
        "namespace": "sft",
    },
    "a claim a run": {"storage": {"per_run": True, "storage_class": "fast.nfs"}},
    "a claim of one's own, and more": {
        "storage": {"claim": "ours", "create": False},
        "claims": ["datasets", "x" * 63],
    },
    "proxy and certificates": {
        "proxy": {"http": "http://proxy:3128", "https": "http://proxy:3129"},
        "ca_bundle": {"config_map": "tmp"},
        "env": {"HF_ENDPOINT": "https://hub.example"},
    },
    "locks": {"mutex": "gpus", "semaphore": {"config_map": "locks", "key": "runs"}},
    "artifacts": {"artifacts": True},
    "scheduling": {
        "priority_class": "batch",
        "node_selector": {"zone": "a"},
        "tolerations": [{"key": "batch", "operator": "Equal", "value": "yes"}],
        "labels": {"team.example/name": "a"},
        "annotations": {"note": "yes: 5e-06"},
        "gpu": {"resource": "amd.com/gpu", "node_selector": {"gpu": "mi300"}},
        "images": {
            "registry": "quay.io/team",
            "pull_secrets": ["quay"],
            "digests": {"sft-train": f"sha256:{'0' * 64}"},
        },
        "secrets": {"hf-token": "team-hf"},
        "parameters": {"epochs": 3, "save_epoch": False, "tasks": ["arc_easy", "hellaswag"]},
    },
    "argo 3.6": {"argo": "3.6", "schedule": SCHEDULE},
    "one event bus": {
        "events": {**EVENTS, "bus": {"replicas": 1}, "minio": EVENTS["minio"] | {"marker": "done"}}
    },
}


def cluster(name: str = "defaults", **more: Any) -> Settings:
    """The settings of that cluster."""
    return settings.validate(CLUSTERS[name] | more, "settings")
