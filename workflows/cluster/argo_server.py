"""Runs through an Argo server, with the environment variables that Argo's own command reads."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from hera.workflows import models as m
from hera.workflows.service import WorkflowsService
from pydantic import BaseModel, ValidationError

from steps.errors import ConfigError, NotThereError, TransientError, UsageError
from workflows.cluster.api import Object, Template
from workflows.cluster.errors import Request, refused

_TIMEOUT = (10, 60)
_WATCH_SECONDS = 300  # the server ends a watch after so long, and a new one is opened
_PAGE = 100
_NO = ("false", "0", "no")


class _Session(requests.Session):
    """Hera sets no time limit and loses what a server says beside 2xx; here neither happens."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.asked = Request("reach", "workflows")
        # The token stands in a header already, which an entry in ~/.netrc would replace.
        self.auth = lambda request: request

    def request(self, *args: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", _TIMEOUT)
        answer = super().request(*args, **options)
        if not answer.ok:
            words = _words(answer)
            if words is None and answer.status_code == 404:
                raise ConfigError(f"{self.where}: is not an Argo server: check the address")
            raise refused(
                self.where,
                self.asked,
                answer.status_code,
                words or answer.text or answer.reason,
                "put a valid token into ARGO_TOKEN (argo auth token prints one)",
            )
        return answer


class ArgoServer:
    """Workflows of one namespace."""

    def __init__(self, url: str, token: str, namespace: str, *, verified: bool) -> None:
        self.namespace = namespace
        self.flags = f"-n {namespace} --server {url}"
        self._url = url.rstrip("/") + "/"
        self._session = _Session(url)
        self._service = WorkflowsService(
            host=self._url,
            verify_ssl=verified,
            token=token or None,
            namespace=namespace,
            session=self._session,
        )

    @classmethod
    def at(cls, server: str, namespace: str, where: str) -> Self:
        """The server at an address, with or without a scheme, and with the token in ARGO_TOKEN.

        `where` is what the address was read from, for messages.
        """
        if not namespace:
            raise UsageError("an Argo server needs to know the namespace: -n, or ARGO_NAMESPACE")
        if "://" not in server:
            secure = os.environ.get("ARGO_SECURE", "true").lower() not in _NO
            server = f"{'https' if secure else 'http'}://{server}"
        try:
            address = urlsplit(server)
            usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{where}: {server!r} is not an address of http or https")
        skip = os.environ.get("ARGO_INSECURE_SKIP_VERIFY", "false").lower() not in (*_NO, "")
        if skip:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        return cls(server, os.environ.get("ARGO_TOKEN", "").strip(), namespace, verified=not skip)

    def template(self, template: Template) -> Object:
        """The template as it is there."""
        if template.cluster_scope:
            with self._asking("get", "clusterworkflowtemplates", template.name):
                return _plain(self._service.get_cluster_workflow_template(template.name))
        with self._asking("get", "workflowtemplates", template.name):
            return _plain(self._service.get_workflow_template(template.name))

    def templates(self, *, cluster_scope: bool) -> list[str]:
        """Names of the templates that are there."""
        with self._asking(
            "list", "clusterworkflowtemplates" if cluster_scope else "workflowtemplates"
        ):
            found = (
                self._service.list_cluster_workflow_templates()
                if cluster_scope
                else self._service.list_workflow_templates()
            )
            return [str(item.metadata.name) for item in found.items or []]

    def submit(self, workflow: Mapping[str, Any]) -> Object:
        """The workflow as it was created."""
        with self._asking("create", "workflows", workflow["metadata"].get("name", "")):
            request = m.WorkflowCreateRequest(workflow=m.Workflow.model_validate(workflow))
            return _plain(self._service.create_workflow(request))

    def get(self, name: str) -> Object:
        """The workflow as it is now."""
        with self._asking("get", "workflows", name):
            return _plain(self._service.get_workflow(name))

    def runs(self, selector: str) -> list[Object]:
        """The workflows with these labels."""
        found: list[Object] = []
        following: str | None = None
        while True:
            with self._asking("list", "workflows"):
                page = self._service.list_workflows(
                    label_selector=selector, limit=str(_PAGE), continue_=following
                )
            found += [_plain(item) for item in page.items or []]
            following = page.metadata.continue_
            if not following:
                return found

    def changes(self, name: str) -> Iterator[Object]:
        """The workflow as it is, then after each change, until the connection ends."""
        yield self.get(name)
        with self._asking("watch", "workflows", name):
            # Hera would read the stream to its end before it gives anything of it.
            answer = self._session.get(
                urljoin(self._url, f"api/v1/workflow-events/{self.namespace}"),
                params={
                    "listOptions.fieldSelector": f"metadata.name={name}",
                    "listOptions.timeoutSeconds": str(_WATCH_SECONDS),
                },
                headers={"Authorization": self._service.token},
                verify=self._service.verify_ssl,
                timeout=(_TIMEOUT[0], _WATCH_SECONDS + 30),
                stream=True,
            )
            with answer:
                for line in answer.iter_lines():
                    event = json.loads(line.removeprefix(b"data:")) if line else {}
                    if "error" in event:
                        return  # also how the server ends a watch; the caller looks anew
                    if "result" not in event:
                        continue
                    if event["result"]["type"] == "DELETED":
                        raise NotThereError(f"{self._url}: {name} was deleted")
                    yield event["result"]["object"]

    def stop(self, name: str, shutdown: Literal["Stop", "Terminate"]) -> None:
        """Let the workflow end."""
        with self._asking("update", "workflows", name):
            if shutdown == "Stop":
                self._service.stop_workflow(name, m.WorkflowStopRequest(name=name))
            else:
                self._service.terminate_workflow(name, m.WorkflowTerminateRequest(name=name))

    def retry(self, name: str) -> None:
        """Do again what failed."""
        with self._asking("update", "workflows", name):
            self._service.retry_workflow(name, m.WorkflowRetryRequest(name=name))

    def link(self, name: str) -> str:
        """Address of the workflow's page."""
        return f"{self._url}workflows/{self.namespace}/{name}"

    @contextlib.contextmanager
    def _asking(self, verb: str, resource: str, name: str = "") -> Iterator[None]:
        namespace = "" if resource.startswith("cluster") else self.namespace
        self._session.asked = Request(verb, resource, namespace, name)
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise ConfigError(
                f"{self._url}: the server's certificate is not trusted: {error}; name its authority "
                "by REQUESTS_CA_BUNDLE, or ARGO_SECURE=false for a server without TLS"
            ) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise UsageError(f"--server: {error}") from error
        except (json.JSONDecodeError, ValidationError) as error:
            raise ConfigError(
                f"{self._url}: does not answer as an Argo server does: {error}; check the address"
            ) from error
        except requests.exceptions.RequestException as error:
            raise TransientError(
                f"{self._url}: does not answer: {error}; check the address and the network"
            ) from error


def _plain(model: BaseModel) -> Object:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _words(answer: requests.Response) -> str | None:
    """What the server says; None where it says nothing as Argo's does."""
    with contextlib.suppress(ValueError):
        found = answer.json()
        if isinstance(found, dict) and "message" in found:
            return str(found["message"])
    return None
