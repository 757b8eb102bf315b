"""An Argo server on loopback, before the workflows of a Kubernetes server: its REST routes and errors."""

import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.servers.kubernetes import Http, KubernetesServer, Object, Refusal

GROUP = "/apis/argoproj.io/v1alpha1"
PLURALS = {
    "workflows": "workflows",
    "workflow-events": "workflows",
    "workflow-templates": "workflowtemplates",
    "cluster-workflow-templates": "clusterworkflowtemplates",
}
PATH = re.compile(
    r"/api/v1/(?P<route>[-a-z]+)(?P<rest>(/[^/]+){0,2}?)(/(?P<verb>stop|terminate|retry))?"
)
GRPC = {400: 3, 404: 5, 409: 6, 403: 7, 401: 16}
SHUTDOWN = {"stop": "Stop", "terminate": "Terminate"}


@dataclass
class ArgoServer:
    """A server that passes its users' token on to Kubernetes; `retried` are the workflows reset."""

    cluster: KubernetesServer
    tls: ssl.SSLContext | None = None
    retried: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._http = Http(self, self.tls)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cluster.cut()
        self._http.close()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._http.server_address[1]}"

    def answer(
        self, method: str, target: str, authorization: str | None, body: bytes
    ) -> Object | Iterator[Object | bytes]:
        """What a request gets, after it has had its effect."""
        parts = urlsplit(target)
        found = PATH.fullmatch(parts.path)
        if not found or found["route"] not in PLURALS:
            raise Refusal(404, "", "Not Found")
        query = {
            name.removeprefix("listOptions."): value
            for name, value in parse_qsl(parts.query)
            if name.startswith("listOptions.")
        }
        if found["route"] == "workflow-events":
            query["watch"] = "true"
        namespace, _, name = found["rest"].strip("/").partition("/")
        if found["route"].startswith("cluster"):
            namespace, name = "", namespace
        place = f"{GROUP}/namespaces/{namespace}" if namespace else GROUP
        path = f"{place}/{PLURALS[found['route']]}" + (f"/{name}" if name else "")
        if method == "PUT":
            patch: Object = {"spec": {"shutdown": SHUTDOWN.get(found["verb"])}}
            if found["verb"] == "retry":
                self.retried.append(name)
                patch["status"] = {"phase": "Running", "message": None, "finishedAt": None}
            method, body = "PATCH", json.dumps(patch).encode()
        elif method == "POST":
            body = json.dumps(json.loads(body)["workflow"]).encode()
        answer = self.cluster.answer(method, f"{path}?{urlencode(query)}", authorization, body)
        if not isinstance(answer, dict):
            return map(_streamed, answer)
        # Go's empty list.
        return answer | {"items": None} if answer.get("items") == [] else answer

    def refuse(self, refusal: Refusal) -> str:
        """The body of a refusal, as gRPC's gateway words it."""
        return json.dumps({"code": GRPC.get(refusal.code, 2), "message": refusal.message})


def _streamed(event: Object | bytes) -> Object:
    assert isinstance(event, dict)
    if event["type"] == "ERROR":
        return {"error": {"grpc_code": 8, "http_code": 429, "message": event["object"]["message"]}}
    return {"result": event}
