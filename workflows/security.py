"""What holds for every pod and container: Pod Security Standard 'restricted', and more for our own.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from typing import Any

from workflows.settings import Settings

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # a path
"""Where Kubernetes puts a pod's token; a volume mounted there keeps it from a container."""

RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the standard asks of any container."""

CONTAINER: dict[str, Any] = {**RESTRICTED, "readOnlyRootFilesystem": True}
"""Our containers: they write to their volumes alone."""

# Argo's containers write to their own root (argo-workflows issue 10787), and get their settings only
# by a patch. Namespaces with a quota refuse a container that does not say what it needs.
_ARGO: dict[str, Any] = {
    "securityContext": RESTRICTED,
    "resources": {
        "requests": {"cpu": "10m", "memory": "64Mi"},
        "limits": {"cpu": "1", "memory": "512Mi"},
    },
}

EXECUTOR: dict[str, Any] = {
    "initContainers": [{"name": "init", **_ARGO}],
    "containers": [{"name": "wait", **_ARGO}],
}
"""Patch of a pod of ours: Argo's init and wait containers."""

EXECUTOR_ALONE: dict[str, Any] = {
    "initContainers": [{"name": "init", **_ARGO}],
    "containers": [{"name": "main", **_ARGO}],
}
"""Patch of a pod that runs nothing but Argo's own code: it has no wait container."""


def pod(settings: Settings) -> dict[str, Any]:
    """The security context of all pods. OpenShift gives each namespace users of its own."""
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.platform == "openshift":
        return restricted
    # Group 0 owns what the images hold; the volume belongs to the user's group.
    return {
        **restricted,
        "runAsUser": settings.user,
        "runAsGroup": settings.user,
        "fsGroup": settings.user,
        "fsGroupChangePolicy": "OnRootMismatch",
    }
