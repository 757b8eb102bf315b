"""Which cluster a command means, by its flags and the environment, and the way there."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steps import flags
from steps.errors import UsageError
from workflows.cluster.api import DNS_LABEL, Cluster, Template
from workflows.pipeline import Pipeline

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


_WAYS = {
    "context": ("NAME", "Context of the kubeconfig. (default: its current one)"),
    "server": (
        "URL",
        "URL of an Argo server, with the token in ARGO_TOKEN. (default: ARGO_SERVER; without, the "
        "Kubernetes API by kubeconfig)",
    ),
}


def add_template_flags(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, pipeline: Pipeline
) -> None:
    """Add the flags that name the template of the runs."""
    group = parser.add_mutually_exclusive_group()
    templates = {
        "template": ("NAME", f"WorkflowTemplate of the runs. (default: {pipeline.name})"),
        "cluster_template": ("NAME", "ClusterWorkflowTemplate of the runs, instead."),
    }
    flags.add_own(group, templates)


def template(given: Mapping[str, Any], pipeline: Pipeline) -> Template:
    """The template that the flags name."""
    if "cluster_template" in given:
        return Template(given["cluster_template"], cluster_scope=True)
    return Template(given.get("template", pipeline.name))


def add_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say which cluster and namespace."""
    parser.add_argument(
        *("-n", "--namespace"),
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="Namespace of the runs. (default: ARGO_NAMESPACE, the context's)",
    )
    flags.add_own(parser, _WAYS)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags of a command that has no parameters; UsageError with all that is wrong."""
    given, problems = flags.parse(parser, argv, list(parser._option_string_actions))
    if problems:
        raise UsageError("\n  ".join(problems))
    return given


def namespace_of(given: Mapping[str, Any]) -> str:
    """The namespace that the flags or the environment name, if any (UsageError where it is no name)."""
    namespace: str = given.get("namespace") or os.environ.get("ARGO_NAMESPACE", "")
    if namespace and not DNS_LABEL.fullmatch(namespace):
        where = "--namespace" if given.get("namespace") else "ARGO_NAMESPACE"
        raise UsageError(f"{where}: {namespace!r} is not the name of a namespace")
    return namespace


def connect(given: Mapping[str, Any]) -> Cluster:
    """The cluster that the flags name; nothing is sent yet."""
    namespace = namespace_of(given)
    if "server" in given and "context" in given:
        raise UsageError("--server and --context name two ways to a cluster; leave one out")
    where, server = "--server", given.get("server")
    if not server and "context" not in given:
        where, server = "ARGO_SERVER", os.environ.get("ARGO_SERVER")
    if server:
        from workflows.cluster.argo_server import ArgoServer  # Hera loads here

        return ArgoServer.at(server, namespace, where)
    from workflows.cluster.kubernetes_api import KubernetesApi  # and the kubernetes client here

    return KubernetesApi.of(given.get("context"), namespace)


def workflow_name(text: str) -> str:
    """The name, if a workflow can have it (UsageError)."""
    if not _DNS_NAME.fullmatch(text):
        raise UsageError(f"{text!r} is not the name of a workflow")
    return text
