"""Runs through the Kubernetes API, by kubeconfig or from within a pod."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import urllib3
import yaml
from kubernetes import client, config, watch
from kubernetes.config import incluster_config, kube_config

import steps
from steps.errors import ConfigError, NotThereError, StepError, TransientError, UsageError
from workflows.cluster.api import GROUP, VERSION, Object, Template
from workflows.cluster.errors import Request, not_installed, refused

_TIMEOUT = (10, 60)
_WATCH_SECONDS = 300  # the server ends a watch after so long, and a new one is opened
_PAGE = 100
_KUBECONFIG = "~/.kube/config"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


# Of the client only some is typed.
_kubeconfig: Any = kube_config
_in_cluster: Any = incluster_config
_Watch: Any = watch.Watch


class KubernetesApi:
    """Workflows of one namespace."""

    def __init__(
        self, api: client.ApiClient, namespace: str, *, where: str, context: str | None
    ) -> None:
        self.namespace = namespace
        self.flags = f"-n {namespace}" + (f" --context {shlex.quote(context)}" if context else "")
        self._api: Any = client.CustomObjectsApi(api)
        self._where = where

    @classmethod
    def of(cls, context: str | None, namespace: str) -> Self:
        """By the kubeconfig's context, or by the pod's service account where there is no kubeconfig."""
        settings = client.Configuration()
        own_namespace = "default"
        try:
            if context or not _in_pod():
                files = _kubeconfig.KubeConfigMerger(os.environ.get("KUBECONFIG", _KUBECONFIG))
                if files.config is None:
                    raise config.ConfigException("there is no kubeconfig")
                loader = _kubeconfig.KubeConfigLoader(
                    files.config, active_context=context, config_base_path=None
                )
                loader.load_and_set(settings)
                chosen = loader.current_context
                own_namespace = chosen["context"].get("namespace") or own_namespace
                where = f"context {chosen['name']}"
            else:
                _in_cluster.load_incluster_config(client_configuration=settings)
                with contextlib.suppress(OSError):
                    own_namespace = _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
                where = "this pod's cluster"
        except (config.ConfigException, yaml.YAMLError, OSError) as error:
            raise ConfigError(
                f"no way to a cluster: {error}: name a kubeconfig by KUBECONFIG and its --context, "
                "or an Argo server by --server"
            ) from error
        settings.retries = False
        api = client.ApiClient(settings)
        api.user_agent = f"sft-pipeline/{steps.__version__}"
        return cls(
            api,
            namespace or own_namespace,
            where=f"{where} ({settings.host})",
            context=context,
        )

    def template(self, template: Template) -> Object:
        """The template as it is there."""
        request = self._template_request("get", template)
        with self._errors(request):
            if template.cluster_scope:
                return self._object(
                    self._api.get_cluster_custom_object(
                        GROUP, VERSION, request.resource, template.name, _request_timeout=_TIMEOUT
                    )
                )
            return self._object(
                self._api.get_namespaced_custom_object(
                    *self._resource(request.resource), template.name, _request_timeout=_TIMEOUT
                )
            )

    def templates(self, *, cluster_scope: bool) -> list[str]:
        """Names of the templates that are there."""
        request = self._template_request("list", Template("", cluster_scope))
        with self._errors(request):
            if cluster_scope:
                found = self._api.list_cluster_custom_object(
                    GROUP, VERSION, request.resource, _request_timeout=_TIMEOUT
                )
            else:
                found = self._api.list_namespaced_custom_object(
                    *self._resource(request.resource), _request_timeout=_TIMEOUT
                )
            return [item["metadata"]["name"] for item in found["items"]]

    def submit(self, workflow: Mapping[str, Any]) -> Object:
        """The workflow as it was created."""
        name = workflow["metadata"].get("name", "")
        with self._errors(self._request("create", name)):
            return self._object(
                self._api.create_namespaced_custom_object(
                    *self._resource("workflows"),
                    dict(workflow),
                    # What the server does not know would otherwise vanish without a word.
                    field_validation="Strict",
                    _request_timeout=_TIMEOUT,
                )
            )

    def get(self, name: str) -> Object:
        """The workflow as it is now."""
        with self._errors(self._request("get", name)):
            return self._object(
                self._api.get_namespaced_custom_object(
                    *self._resource("workflows"), name, _request_timeout=_TIMEOUT
                )
            )

    def runs(self, selector: str) -> list[Object]:
        """The workflows with these labels."""
        found: list[Object] = []
        more: dict[str, str] = {}
        while True:
            with self._errors(self._request("list")):
                page = self._api.list_namespaced_custom_object(
                    *self._resource("workflows"),
                    label_selector=selector,
                    limit=_PAGE,
                    _request_timeout=_TIMEOUT,
                    **more,
                )
            found += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return found
            more = {"_continue": following}

    def changes(self, name: str) -> Iterator[Object]:
        """The workflow as it is, then after each change, until the connection ends."""
        yield self.get(name)
        # Without a version to begin at: that of a workflow that has long not changed is forgotten.
        stream = _Watch().stream(
            self._api.list_namespaced_custom_object,
            *self._resource("workflows"),
            field_selector=f"metadata.name={name}",
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=(_TIMEOUT[0], _WATCH_SECONDS + 30),
        )
        while True:
            with self._errors(self._request("watch", name)):
                try:
                    event = next(stream, None)
                except client.ApiException as error:
                    if error.status != 410:
                        raise
                    return  # the server could not keep up; the caller looks anew
            if event is None:
                return
            if event["type"] == "DELETED":
                raise NotThereError(f"{self._where}: {name} was deleted")
            yield self._object(event["object"])

    def stop(self, name: str, shutdown: Literal["Stop", "Terminate"]) -> None:
        """Let the workflow end."""
        with self._errors(self._request("patch", name)):
            self._api.patch_namespaced_custom_object(
                *self._resource("workflows"),
                name,
                {"spec": {"shutdown": shutdown}},
                _request_timeout=_TIMEOUT,
            )

    def retry(self, name: str) -> None:
        """Refused: the Kubernetes API knows no such thing."""
        raise UsageError(
            "only an Argo server can reset what failed of a workflow: "
            f"sft retry {name} --server URL (or ARGO_SERVER); "
            f"or with Argo's own command: argo retry {name} -n {self.namespace}"
        )

    def link(self, name: str) -> str:  # noqa: ARG002
        """Empty: the Kubernetes API has no pages."""
        return ""

    def _resource(self, plural: str) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, plural

    def _request(self, verb: str, name: str = "") -> Request:
        return Request(verb, "workflows", self.namespace, name)

    def _template_request(self, verb: str, template: Template) -> Request:
        plural = f"{template.kind.lower()}s"
        return Request(
            verb, plural, "" if template.cluster_scope else self.namespace, template.name
        )

    @staticmethod
    def _object(answer: Any) -> Object:
        found: Object = answer
        return found

    @contextlib.contextmanager
    def _errors(self, request: Request) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            raise self._refused(request, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(
                f"{self._where}: does not answer: {error}; check the address and the network"
            ) from error

    def _refused(self, request: Request, error: client.ApiException) -> StepError:
        text = str(error.body or error.reason or "")
        words, is_status = text, False
        with contextlib.suppress(ValueError):
            answer = json.loads(text)
            is_status = isinstance(answer, dict) and answer.get("kind") == "Status"
            words = str(answer.get("message", text)) if is_status else text
        status = int(error.status or 0)
        if not status:  # the client's way to tell a failure of TLS
            return ConfigError(
                f"{self._where}: the server's certificate is not trusted: {words}; "
                "check certificate-authority in the kubeconfig"
            )
        if status == 404 and not is_status:
            return not_installed(self._where)
        return refused(
            self._where, request, status, words, "log in again and renew the kubeconfig's token"
        )


def _in_pod() -> bool:
    """Whether only the pod's service account can be meant."""
    has_kubeconfig = "KUBECONFIG" in os.environ or Path(_KUBECONFIG).expanduser().exists()
    return "KUBERNETES_SERVICE_HOST" in os.environ and not has_kubeconfig
