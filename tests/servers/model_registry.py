"""A Model Registry on loopback: the routes of its v1 and v1alpha3 that a client registers by.

Routes, status codes and bodies are those of kubeflow/hub's api/openapi/model-registry.yaml.
"""

import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import parse_qs, urlsplit

Entity = dict[str, Any]

# MetadataIntValue, MetadataDoubleValue and MetadataStringValue: which field holds which value.
METADATA: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "MetadataIntValue": ("int_value", str),
    "MetadataDoubleValue": ("double_value", (int, float)),
    "MetadataStringValue": ("string_value", str),
}
INT32 = re.compile(r"-?([1-9][0-9]{0,8}|0)")


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    status: int
    body: Entity | str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Failure:
    """What a request to a path gets instead of its answer."""

    method: str
    path: str
    status: int
    times: int
    done: bool
    """Whether the request has its effect all the same: only the answer is lost."""
    headers: dict[str, str]


@dataclass
class ModelRegistryServer:
    """A registry with the API versions in `apis`; with a `token` it wants that one."""

    apis: tuple[str, ...] = ("v1",)
    token: str = ""
    tls: ssl.SSLContext | None = None
    page: int = 2
    """Entities in a page of a list where the client does not say."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization header of each request."""
    registered_models: list[Entity] = field(default_factory=list)
    model_versions: list[Entity] = field(default_factory=list)
    model_artifacts: list[Entity] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._http = _Http(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self._lock = threading.Lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def writes(self) -> list[str]:
        """Methods and paths of the requests that change something, in their order."""
        return [f"{method} {path}" for method, path, _ in self.requests if method != "GET"]

    def fail(
        self,
        method: str,
        path: str,
        status: int,
        *,
        times: int = 1,
        done: bool = False,
        **headers: str,
    ) -> None:
        """Answer the next requests to paths that end in `path` with this status."""
        self.failures.append(Failure(method, path, status, times, done, headers))

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> Answer:
        """What a request gets, after it has had its effect."""
        parts = urlsplit(target)
        with self._lock:
            self.requests.append((method, parts.path, authorization))
            if self.token and authorization != f"Bearer {self.token}":
                return _error(403 if authorization else 401, "no access")
            failure = self._failure(method, parts.path)
            if failure is None or failure.done:
                try:
                    answer = self._route(method, parts.path, parse_qs(parts.query), body)
                except ValueError as error:
                    answer = _error(400, str(error))
            return (
                Answer(failure.status, "<html>busy</html>", failure.headers) if failure else answer
            )

    def _failure(self, method: str, path: str) -> Failure | None:
        for failure in self.failures:
            if failure.times and failure.method == method and path.endswith(failure.path):
                failure.times -= 1
                return failure
        return None

    def _route(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        found = re.fullmatch(r"/api/model_registry/(\w+)/(.+)", path)
        if not found or found[1] not in self.apis:
            return Answer(404, "404 page not found")
        match method, found[2].split("/"):
            case "GET", ["registered_models"]:
                return self._list(self.registered_models, query)
            case "GET", ["registered_models", model, "versions"]:
                of_model = [one for one in self.model_versions if one["registeredModelId"] == model]
                return self._list(of_model, query)
            case "GET", ["registered_model"]:
                return self._find(self.registered_models, name=query["name"][0])
            case "GET", ["model_version"]:
                return self._find(
                    self.model_versions,
                    name=query["name"][0],
                    registeredModelId=query["parentResourceId"][0],
                )
            case "GET", ["model_artifact"]:
                return self._find(
                    self.model_artifacts,
                    name=query["name"][0],
                    modelVersionId=query["parentResourceId"][0],
                )
            case "POST", ["registered_models"]:
                return self._create(self.registered_models, _entity(body), "name")
            case "POST", ["model_versions"]:
                return self._create(self.model_versions, _entity(body), "name", "registeredModelId")
            case "POST", ["model_versions", version, "artifacts"]:
                artifact = _entity(body) | {"modelVersionId": version}
                if artifact.get("artifactType") != "model-artifact":
                    raise ValueError("unsupported artifactType")
                return self._create(self.model_artifacts, artifact, "name", "modelVersionId")
            case "PATCH", [kind, identity]:
                table = {
                    "registered_models": self.registered_models,
                    "model_versions": self.model_versions,
                    "model_artifacts": self.model_artifacts,
                }[kind]
                (stored,) = (one for one in table if one["id"] == identity)
                stored |= _entity(body)
                return Answer(200, stored)
        return Answer(404, "404 page not found")

    def _list(self, table: list[Entity], query: dict[str, list[str]]) -> Answer:
        start = int(query.get("nextPageToken", ["0"])[0] or 0)
        end = start + int(query.get("pageSize", [str(self.page)])[0])
        items = table[start:end]
        token = str(end) if end < len(table) else ""
        return Answer(
            200,
            {"items": items, "size": len(items), "pageSize": end - start, "nextPageToken": token},
        )

    def _find(self, table: list[Entity], **wanted: str) -> Answer:
        for one in table:
            if all(one[key] == value for key, value in wanted.items()):
                return Answer(200, one)
        return _error(404, f"no such entity: {wanted}")

    def _create(self, table: list[Entity], entity: Entity, *unique: str) -> Answer:
        if any(all(one[key] == entity[key] for key in unique) for one in table):
            return _error(409, "already exists")
        everything = [*self.registered_models, *self.model_versions, *self.model_artifacts]
        entity["id"] = str(len(everything) + 1)
        table.append(entity)
        return Answer(201, entity)


class _Http(ThreadingHTTPServer):
    def __init__(self, registry: ModelRegistryServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.registry = registry
        if registry.tls:
            self.socket = registry.tls.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second would wait for the first's receipt

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.registry.answer(
            self.command, self.path, self.headers.get("Authorization"), body
        )
        if isinstance(answer.body, str):
            kind, content = "text/html", answer.body.encode()
        else:
            kind, content = "application/json", json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = _handle  # noqa: N815

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002
        pass


def _error(status: int, message: str) -> Answer:
    return Answer(status, {"code": str(status), "message": message})


def _entity(body: bytes) -> Entity:
    """The body of a request, held to the types of the API's properties (ValueError)."""
    entity: Entity = json.loads(body, parse_constant=_no_number)
    for name, stored in entity.get("customProperties", {}).items():
        key, kind = METADATA[stored["metadataType"]]
        value = stored[key]
        if not isinstance(value, kind) or (key == "int_value" and not INT32.fullmatch(str(value))):
            raise ValueError(f"{name}: bad {key} {value!r}")
    return entity


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
