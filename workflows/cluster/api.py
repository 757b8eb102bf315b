"""What the commands ask of a cluster, whichever way they reach it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Object = dict[str, Any]
"""A Kubernetes object as its API gives it."""

GROUP, VERSION = "argoproj.io", "v1alpha1"

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of namespaces and of runs."""


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
