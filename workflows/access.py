"""Service accounts and what they may do: no more than Argo's executor and the train step need."""

from typing import Any, NamedTuple

from workflows.objects import kubernetes_object
from workflows.pipeline import Pipeline, Step
from workflows.settings import Settings

RUN, TRAIN, WORKER, CLAIMS = "sft-run", "sft-train", "sft-train-worker", "sft-claims"
"""Service accounts: of all pods, of a train step that submits a TrainJob, of that job's pods, of what
makes claims."""

RUNTIMES = "sft-training-runtimes"
"""ClusterRole of what submits TrainJobs: to see the runtimes that belong to no namespace."""

_API = "rbac.authorization.k8s.io"


class Rule(NamedTuple):
    """What a Role allows."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()
    """The only objects that it allows this with."""


# https://argo-workflows.readthedocs.io/en/latest/workflow-rbac/
_EXECUTOR = Rule("argoproj.io", ("workflowtaskresults",), ("create", "patch"))
_TRAINER = (
    Rule("trainer.kubeflow.org", ("trainjobs",), ("create", "list", "watch", "delete")),
    Rule("trainer.kubeflow.org", ("trainingruntimes",), ("list",)),
    Rule("", ("pods",), ("get", "list")),
    Rule("", ("pods/log",), ("get",)),
    Rule("", ("events",), ("list",)),
    # Why a TrainJob waits in a queue.
    Rule("kueue.x-k8s.io", ("workloads",), ("list",)),
)
_RUNTIMES = (
    Rule("trainer.kubeflow.org", ("clustertrainingruntimes",), ("list",)),
    # Which shape of a TrainJob the cluster takes; without it, a dry run tells.
    Rule(
        "apiextensions.k8s.io",
        ("customresourcedefinitions",),
        ("get",),
        ("trainjobs.trainer.kubeflow.org",),
    ),
)
_CLAIMS = Rule("", ("persistentvolumeclaims",), ("get", "create", "patch"))


def submits(step: Step, settings: Settings) -> bool:
    """Whether the step only submits a TrainJob and waits for it."""
    return settings.launcher == "trainjob" and "launcher" in step.params.model_fields


def any_submits(pipeline: Pipeline, settings: Settings) -> bool:
    """Whether a run submits TrainJobs at all."""
    return any(submits(step, settings) for step in pipeline.steps)


def needs_token(step: Step, settings: Settings) -> bool:
    """Whether the step itself talks to the Kubernetes API as the pod's service account."""
    return submits(step, settings) and settings.cluster_auth == "service-account"


def account(step: Step, settings: Settings) -> str:
    """The service account of a step's pod."""
    return settings.named(TRAIN if submits(step, settings) else RUN)


def accounts(settings: Settings, pipeline: Pipeline) -> list[dict[str, Any]]:
    """The service accounts with their Roles."""
    found = allowed(RUN, settings, _EXECUTOR)
    if any_submits(pipeline, settings):
        found += allowed(TRAIN, settings, _EXECUTOR, *_TRAINER)
        found.append(
            kubernetes_object(
                "ServiceAccount", WORKER, settings, automountServiceAccountToken=False
            )
        )
    if settings.storage.per_run:
        found += allowed(CLAIMS, settings, _EXECUTOR, _CLAIMS)
    return found


def cluster_roles(settings: Settings, pipeline: Pipeline) -> list[dict[str, Any]]:
    """What a train step must see beyond its namespace; only an administrator can grant it.

    The role is the same for all teams of the cluster, the binding a namespace's own. Without a namespace
    there is none to name: it is bound by hand.
    """
    if not any_submits(pipeline, settings):
        return []
    found = [_role("ClusterRole", RUNTIMES, settings, *_RUNTIMES)]
    if settings.namespace:
        name = f"{RUNTIMES}-{settings.namespace}"
        found.append(_binding("ClusterRole", RUNTIMES, TRAIN, settings, name=name))
    return found


def allowed(name: str, settings: Settings, *rules: Rule) -> list[dict[str, Any]]:
    """A service account, and a Role of the same name that allows it just this."""
    return [
        kubernetes_object("ServiceAccount", name, settings),
        _role("Role", name, settings, *rules),
        _binding("Role", name, name, settings),
    ]


def _role(kind: str, name: str, settings: Settings, *rules: Rule) -> dict[str, Any]:
    return kubernetes_object(
        kind,
        name,
        settings,
        version=f"{_API}/v1",
        cluster_scoped=kind == "ClusterRole",
        rules=[
            {
                "apiGroups": [rule.group],
                "resources": list(rule.resources),
                "verbs": list(rule.verbs),
                **({"resourceNames": list(rule.names)} if rule.names else {}),
            }
            for rule in rules
        ],
    )


def _binding(
    kind: str, role: str, account: str, settings: Settings, *, name: str = ""
) -> dict[str, Any]:
    """A binding of the role, by the role's name unless it has one of its own."""
    subject = {"kind": "ServiceAccount", "name": settings.named(account)}
    if settings.namespace:  # without one it is the binding's own
        subject["namespace"] = settings.namespace
    return kubernetes_object(
        f"{kind}Binding",
        name or role,
        settings,
        version=f"{_API}/v1",
        cluster_scoped=kind == "ClusterRole",
        roleRef={"apiGroup": _API, "kind": kind, "name": settings.named(role)},
        subjects=[subject],
    )
