"""What the commands ask of a cluster, and which way they reach it."""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from steps import flags
from steps.errors import UsageError
from workflows.pipeline import Pipeline

Object = dict[str, Any]
"""A Kubernetes object as its API gives it."""

GROUP, VERSION = "argoproj.io", "v1alpha1"

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of namespaces and of runs."""
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Template:
    """The WorkflowTemplate or ClusterWorkflowTemplate that a run is made from."""

    name: str
    cluster_scope: bool = False

    @property
    def kind(self) -> str:
        """Its kind."""
        return "ClusterWorkflowTemplate" if self.cluster_scope else "WorkflowTemplate"

    @property
    def label(self) -> str:
        """The label that names it on a run."""
        scope = "cluster-" if self.cluster_scope else ""
        return f"workflows.argoproj.io/{scope}workflow-template"


class Cluster(Protocol):
    """Runs in one namespace; every failure is a StepError that says what to do."""

    namespace: str
    flags: str
    """What leads another command here: `-n team-a --context prod`."""

    def template(self, template: Template) -> Object:
        """The template as it is there (NotThereError, ForbiddenError)."""

    def templates(self, *, cluster_scope: bool) -> list[str]:
        """Names of the templates that are there."""

    def submit(self, workflow: Mapping[str, Any]) -> Object:
        """The workflow as it was created."""

    def get(self, name: str) -> Object:
        """The workflow as it is now (NotThereError)."""

    def runs(self, selector: str) -> list[Object]:
        """The workflows with these labels."""

    def changes(self, name: str) -> Iterator[Object]:
        """The workflow as it is, then after each change, until the connection ends.

        NotThereError when it is not there or is deleted, TransientError when the connection is lost.
        """

    def stop(self, name: str, shutdown: Literal["Stop", "Terminate"]) -> None:
        """Let the workflow end: `Stop` still runs the exit handler."""

    def retry(self, name: str) -> None:
        """Do again what failed."""

    def link(self, name: str) -> str:
        """Address of the workflow's page; empty where none is known."""


def add_template_flags(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, pipeline: Pipeline
) -> None:
    """Add the flags that name the template of the runs."""
    group = parser.add_mutually_exclusive_group()
    for name, text in (
        ("template", f"WorkflowTemplate of the runs. (default: {pipeline.name})"),
        ("cluster_template", "ClusterWorkflowTemplate of the runs, instead."),
    ):
        group.add_argument(flags.flag(name), metavar="NAME", default=argparse.SUPPRESS, help=text)


def template(given: Mapping[str, Any], pipeline: Pipeline) -> Template:
    """The template that the flags name."""
    if "cluster_template" in given:
        return Template(given["cluster_template"], cluster_scope=True)
    return Template(given.get("template", pipeline.name))


def add_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say which cluster and namespace."""
    for names, text in (
        (("-n", "--namespace"), "Namespace of the runs. (default: ARGO_NAMESPACE, the context's)"),
        (("--context",), "Context of the kubeconfig. (default: its current one)"),
        (
            ("--server",),
            "URL of an Argo server, with the token in ARGO_TOKEN. (default: ARGO_SERVER; "
            "without, the Kubernetes API by kubeconfig)",
        ),
    ):
        parser.add_argument(*names, default=argparse.SUPPRESS, help=text)


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
        raise UsageError(f"--namespace: {namespace!r} is not the name of a namespace")
    return namespace


def connect(given: Mapping[str, Any]) -> Cluster:
    """The cluster that the flags name; nothing is sent yet."""
    namespace = namespace_of(given)
    if "server" in given and "context" in given:
        raise UsageError("--server and --context name two ways to a cluster; leave one out")
    server = given.get("server") or (
        "" if "context" in given else os.environ.get("ARGO_SERVER", "")
    )
    if server:
        from workflows.cluster.argo_server import ArgoServer

        return ArgoServer.at(server, namespace)
    from workflows.cluster.kubernetes_api import KubernetesApi

    return KubernetesApi.of(given.get("context"), namespace)


def workflow_name(text: str) -> str:
    """The name, if a workflow can have it (UsageError)."""
    if not _DNS_NAME.fullmatch(text):
        raise UsageError(f"{text!r} is not the name of a workflow")
    return text
