"""A cluster with Argo Workflows on loopback, and the `sft` commands that talk to it."""

import io
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.servers.argo_server import ArgoServer
from tests.servers.kubernetes import Kind, KubernetesServer, Object
from workflows.argo import workflow_template
from workflows.cli import main
from workflows.settings import Settings

SFT = [sys.executable, "-m", "workflows.cli"]
TOKEN = "a-token"
TEXT: Object = {"type": "string"}
PARAMETER: Object = {"type": "object", "properties": {"name": TEXT, "value": TEXT}}
REFERENCE: Object = {
    "type": "object",
    "properties": {"name": TEXT, "clusterScope": {"type": "boolean"}},
}
ARGUMENTS: Object = {
    "type": "object",
    "properties": {"parameters": {"type": "array", "items": PARAMETER}},
}
# Of the real one, what a run from a template has where references are strict.
WORKFLOW: Object = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "arguments": ARGUMENTS,
                "entrypoint": TEXT,
                "shutdown": TEXT,
                "workflowTemplateRef": REFERENCE,
            },
        },
        "status": {"type": "object"},
    },
}
KINDS = (
    Kind("argoproj.io", "v1alpha1", "workflows", "Workflow", schema=WORKFLOW),
    Kind("argoproj.io", "v1alpha1", "workflowtemplates", "WorkflowTemplate"),
    Kind(
        *("argoproj.io", "v1alpha1", "clusterworkflowtemplates", "ClusterWorkflowTemplate"),
        namespaced=False,
    ),
)


def template(**settings: Any) -> Object:
    """The pipeline's template as a cluster has it."""
    found: Object = workflow_template(Settings.model_validate(settings)).to_dict()
    return found


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Cluster:
    """A namespace `team`, and who may speak for it."""

    api: KubernetesServer
    environment: dict[str, str]

    def sft(self, *arguments: object, **environment: str) -> Done:
        """The command, to its end; in this process, because its imports take seconds."""
        words = list(map(str, arguments))
        told, shown = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment | environment, clear=True),
            redirect_stdout(shown),
            redirect_stderr(told),
        ):
            code = main(words)
        return Done(code, shown.getvalue(), told.getvalue())

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """The command, while other things happen."""
        return subprocess.Popen(
            [*SFT, *map(str, arguments)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def workflow(self, name: str = "one", **status: Any) -> None:
        """Put a run there."""
        label = {"workflows.argoproj.io/workflow-template": "sft-pipeline"}
        run: Object = {
            "metadata": {"name": name, "labels": label},
            "spec": {"workflowTemplateRef": {"name": "sft-pipeline"}},
            "status": status,
        }
        self.api.create("workflows", run, "team")

    def status(self, name: str = "one", **status: Any) -> None:
        """What the controller says of a run from now on."""
        self.api.patch("workflows", name, {"status": status}, "team")

    @property
    def submitted(self) -> list[Any]:
        """The workflows that were sent."""
        return [body for body in self.api.bodies if body.get("kind") == "Workflow"]


@contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster, with a kubeconfig in the folder that knows it."""
    with KubernetesServer(
        **{"kinds": KINDS, "namespaces": ("team",), "token": TOKEN, **options}
    ) as api:
        path = folder / "kubeconfig"
        path.write_text(json.dumps(kubeconfig(api.url)))
        yield Cluster(api, environment(folder) | {"KUBECONFIG": str(path)})


def kubeconfig(url: str, token: str = TOKEN) -> Object:
    """What a user has in ~/.kube/config."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
        ],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }


def environment(folder: Path) -> dict[str, str]:
    """The environment without any way to a cluster."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ARGO_", "KUBE")) and not name.lower().endswith("_proxy")
    }
    return own | {"HOME": str(folder)}


@contextmanager
def argo_server(
    of: Cluster, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[ArgoServer, dict[str, str]]]:
    """An Argo server for the cluster, and the variables that lead to it."""
    with ArgoServer(of.api, tls) as server:
        yield (
            server,
            {
                "ARGO_SERVER": server.address,
                "ARGO_SECURE": "true" if tls else "false",
                "ARGO_TOKEN": f"Bearer {TOKEN}",
                "ARGO_NAMESPACE": "team",
            },
        )


def nodes(*each: Object) -> Object:
    """The nodes of a workflow's status."""
    return {node["id"]: node for node in each}


def node(
    template: str,
    phase: str,
    message: str = "",
    *,
    kind: str = "Pod",
    attempt: int = 0,
    **more: Any,
) -> Object:
    """A node as the controller writes it."""
    name = f"one.{template}" + (f"({attempt})" if kind == "Pod" else "")
    return {
        "id": f"one-{template}-{kind}-{attempt}",
        "name": name,
        "type": kind,
        "templateName": template,
        "phase": phase,
        "message": message,
        "startedAt": f"2026-01-01T10:0{attempt}:00Z",
        **more,
    }
