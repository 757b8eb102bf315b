"""A Kubernetes API server on loopback: any resource by its path, as the real one answers for it.

Objects are created (with generateName, dry run and strict validation), read, listed (labels, one field,
pages), watched (from a resource version, 410 where it is too old), patched and deleted; codes
and bodies are those of an API server 1.36.
"""

import copy
import itertools
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]

PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}


@dataclass(frozen=True)
class Kind:
    """A resource that the server knows."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    schema: Object = field(default_factory=dict)
    """Structural schema; empty takes anything."""


@dataclass
class Refusal(Exception):  # noqa: N818
    """An answer that is none: a status code, Kubernetes' reason for it, and the words."""

    code: int
    reason: str
    message: str


@dataclass
class KubernetesServer:
    """A server that knows some kinds; with a `token` it wants that one."""

    kinds: tuple[Kind, ...]
    namespaces: tuple[str, ...] = ("default",)
    token: str = ""
    tls: ssl.SSLContext | None = None
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of verb and plural that nobody has the right to."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and target of each request."""
    bodies: list[Any] = field(default_factory=list)
    """What each POST and PATCH sent."""

    def __enter__(self) -> Self:
        self.changed = threading.Condition()
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._events: list[tuple[int, str, str, Object]] = []
        self._versions = itertools.count(1000)
        self._oldest = 0
        self._cuts = 0
        self._failures: list[list[Any]] = []
        self._http = Http(self, self.tls)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut()
        self._http.close()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._http.server_address[1]}"

    # What a controller, or a person, does beside the client.

    def create(self, plural: str, obj: Object, namespace: str = "default") -> Object:
        """Put an object there."""
        return self._create(self._kind(plural), namespace, obj, {})

    def get(self, plural: str, name: str, namespace: str = "default") -> Object:
        """The object as it is."""
        with self.changed:
            return self._find(self._kind(plural), namespace, name)

    def patch(self, plural: str, name: str, patch: Object, namespace: str = "default") -> None:
        """Merge something into an object, its status too."""
        with self.changed:
            kind = self._kind(plural)
            merged = _merged(self._find(kind, namespace, name), patch)
            self._store(kind, namespace, merged, "MODIFIED")

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        """Take an object away."""
        with self.changed:
            self._delete(self._kind(plural), namespace, name)

    def fail(self, method: str, part: str, status: int, times: int = 1) -> None:
        """Answer the next requests whose target has `part` with this status; 0 drops them."""
        self._failures.append([method, part, status, times])

    def forget(self) -> None:
        """Forget all changes so far: a watch from before is told 410, an open one too."""
        with self.changed:
            self._oldest = next(self._versions)
            self.changed.notify_all()

    def cut(self) -> None:
        """Drop the connections of all watches, without an end."""
        with self.changed:
            self._cuts += 1
            self.changed.notify_all()

    def wait_for(self, holds: Callable[[], object]) -> None:
        """Wait until something holds after a request or a change."""
        with self.changed:
            assert self.changed.wait_for(holds, 60), self.requests

    def asked(self, method: str, part: str) -> int:
        """How many requests had this method, and this in their target."""
        return sum(each == method and part in target for each, target in self.requests)

    # Requests.

    def answer(
        self, method: str, target: str, authorization: str | None, body: bytes
    ) -> Object | Iterator[Object]:
        """What a request gets, after it has had its effect."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        with self.changed:
            self.requests.append((method, target))
            self.changed.notify_all()
            for failure in self._failures:
                if failure[0] == method and failure[1] in target and failure[3]:
                    failure[3] -= 1
                    if not failure[2]:
                        raise ConnectionAbortedError
                    raise Refusal(failure[2], "", "<html>out of order</html>")
            found = PATH.fullmatch(parts.path)
            kind = found and self._known(found)
            if not found or not kind:
                raise Refusal(404, "", "404 page not found\n")
            namespace, name = found["namespace"] or "", found["name"] or ""
            verb = VERBS.get(method) or ("get" if name else "list")
            self._let_in(authorization, "watch" if "watch" in query else verb, kind)
            return self._do(verb, kind, namespace, name, query, body)

    def refuse(self, refusal: Refusal) -> str:
        """The body of a refusal: a Status, but for paths that the server does not know."""
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        told = {"message": refusal.message, "reason": refusal.reason, "code": refusal.code}
        return json.dumps(status | told) if refusal.reason else refusal.message

    def _do(
        self,
        verb: str,
        kind: Kind,
        namespace: str,
        name: str,
        query: dict[str, str],
        body: bytes,
    ) -> Object | Iterator[Object]:
        if verb == "list":
            return (
                self._watch(kind, namespace, query)
                if "watch" in query
                else self._list(kind, namespace, query)
            )
        if verb == "get":
            return self._find(kind, namespace, name)
        if verb == "delete":
            return self._delete(kind, namespace, name)
        sent = json.loads(body)
        self.bodies.append(sent)
        if verb == "create":
            return self._create(kind, namespace, sent, query)
        if not isinstance(sent, dict):
            raise Refusal(400, "BadRequest", "error decoding patch: json: cannot unmarshal array")
        sent = self._valid(kind, _merged(self._find(kind, namespace, name), sent), query)
        return sent if "dryRun" in query else self._store(kind, namespace, sent, "MODIFIED")

    def _let_in(self, authorization: str | None, verb: str, kind: Kind) -> None:
        if self.token and authorization and authorization != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        anonymous = self.token and not authorization
        if anonymous or (verb, kind.plural) in self.forbidden:
            user = "system:anonymous" if anonymous else "someone"
            raise Refusal(
                403,
                "Forbidden",
                f'{kind.plural}.{kind.group} is forbidden: User "{user}" cannot {verb} resource '
                f'"{kind.plural}" in API group "{kind.group}"',
            )

    def _kind(self, plural: str) -> Kind:
        return next(kind for kind in self.kinds if kind.plural == plural)

    def _known(self, found: re.Match[str]) -> Kind | None:
        for kind in self.kinds:
            same = (kind.group, kind.version, kind.plural) == (
                found["group"] or "", found["version"], found["plural"]
            )  # fmt: skip
            if same and (kind.namespaced or not found["namespace"]):
                return kind
        return None

    def _find(self, kind: Kind, namespace: str, name: str) -> Object:
        if (kind.plural, namespace, name) not in self._objects:
            message = f'{kind.plural}.{kind.group} "{name}" not found'
            raise Refusal(404, "NotFound", message)
        return self._objects[kind.plural, namespace, name]

    def _matching(self, kind: Kind, namespace: str, query: dict[str, str]) -> list[Object]:
        return [
            obj
            for (plural, place, _), obj in self._objects.items()
            if plural == kind.plural and namespace in ("", place) and _selected(obj, query)
        ]

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> Object:
        items = self._matching(kind, namespace, query)
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 0) or len(items))
        metadata: Object = {"resourceVersion": str(next(self._versions))}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return {
            "apiVersion": f"{kind.group}/{kind.version}",
            "kind": f"{kind.kind}List",
            "metadata": metadata,
            "items": items[start : start + limit],
        }

    def _watch(self, kind: Kind, namespace: str, query: dict[str, str]) -> Iterator[Object]:
        """What is there, unless a version to begin at is given; then every change."""
        told, cuts, oldest = len(self._events), self._cuts, self._oldest
        there = [] if "resourceVersion" in query else self._matching(kind, namespace, query)
        if "resourceVersion" in query:
            since = int(query["resourceVersion"])
            oldest = oldest if since >= oldest else -1
            told = sum(version <= since for version, *_ in self._events)

        def changes() -> Iterator[Object]:
            yield from ({"type": "ADDED", "object": obj} for obj in there)
            place = told
            while True:
                with self.changed:
                    while place == len(self._events) and (cuts, oldest) == (
                        self._cuts,
                        self._oldest,
                    ):
                        self.changed.wait()
                    if cuts != self._cuts:
                        raise ConnectionAbortedError
                    if oldest != self._oldest:
                        break
                    _, key, type_, obj = self._events[place]
                place += 1
                if key == f"{kind.plural}/{namespace}" and _selected(obj, query):
                    yield {"type": type_, "object": obj}
            gone = self.refuse(
                Refusal(410, "Expired", f"too old resource version ({self._oldest})")
            )
            yield {"type": "ERROR", "object": json.loads(gone)}

        return changes()

    def _create(self, kind: Kind, namespace: str, obj: Object, query: dict[str, str]) -> Object:
        if kind.namespaced and namespace not in self.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        obj = self._valid(kind, copy.deepcopy(obj), query)
        metadata = obj.setdefault("metadata", {})
        name = metadata.get("name") or f"{metadata.get('generateName', '')}{next(self._versions)}"
        if not NAME.fullmatch(name):
            raise Refusal(
                422, "Invalid", f'{kind.kind}.{kind.group} "{name}" is invalid: metadata.name: '
                "Invalid value: a lowercase RFC 1123 subdomain must consist of lower case "
                "alphanumeric characters, '-' or '.'"
            )  # fmt: skip
        place = namespace if kind.namespaced else ""
        if (kind.plural, place, name) in self._objects:
            message = f'{kind.plural}.{kind.group} "{name}" already exists'
            raise Refusal(409, "AlreadyExists", message)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata |= {"name": name, "uid": f"uid-{name}", "creationTimestamp": now, "generation": 1}
        if place:
            metadata["namespace"] = place
        return obj if "dryRun" in query else self._store(kind, place, obj, "ADDED")

    def _valid(self, kind: Kind, obj: Object, query: dict[str, str]) -> Object:
        """The object as it is stored; what its schema does not know is cut away or refused."""
        if not kind.schema:
            return obj
        unknown: list[str] = []
        wrong: list[str] = []
        # Every object has these, whatever the schema says.
        own: Object = {name: {} for name in ("apiVersion", "kind", "metadata")}
        schema = kind.schema | {"properties": kind.schema["properties"] | own}
        pruned: Object = _checked(obj, schema, "", unknown, wrong)
        if unknown and query.get("fieldValidation") == "Strict":
            told = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise Refusal(400, "BadRequest", f"strict decoding error: {told}")
        if wrong:
            name = obj.get("metadata", {}).get("name", "")
            raise Refusal(422, "Invalid", f'{kind.kind} "{name}" is invalid: {", ".join(wrong)}')
        return pruned

    def _store(self, kind: Kind, namespace: str, obj: Object, type_: str) -> Object:
        version = next(self._versions)
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(version)
        self._objects[kind.plural, namespace, obj["metadata"]["name"]] = obj
        return self._tell(version, kind, namespace, type_, obj)

    def _tell(self, version: int, kind: Kind, namespace: str, type_: str, obj: Object) -> Object:
        with self.changed:
            self._events.append((version, f"{kind.plural}/{namespace}", type_, obj))
            self.changed.notify_all()
        return obj

    def _delete(self, kind: Kind, namespace: str, name: str) -> Object:
        obj = self._find(kind, namespace, name)
        if obj["metadata"].get("finalizers"):
            marked = {"metadata": {"deletionTimestamp": obj["metadata"]["creationTimestamp"]}}
            return self._store(kind, namespace, _merged(obj, marked), "MODIFIED")
        del self._objects[kind.plural, namespace, name]
        self._tell(next(self._versions), kind, namespace, "DELETED", obj)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def _checked(value: Any, schema: Object, path: str, unknown: list[str], wrong: list[str]) -> Any:
    """The value without what the schema does not know; faults go into the two lists."""
    kind = TYPES.get(schema.get("type", ""), object)
    is_number_for_bool = isinstance(value, bool) and schema.get("type") in ("integer", "number")
    if not isinstance(value, kind) or is_number_for_bool:
        wrong.append(f"{path}: Invalid value: must be of type {schema['type']}")
        return value
    if isinstance(value, list) and "items" in schema:
        return [
            _checked(item, schema["items"], f"{path}[{place}]", unknown, wrong)
            for place, item in enumerate(value)
        ]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    kept = {}
    for name, inner in value.items():
        below = f"{path}.{name}".lstrip(".")
        if name in schema["properties"]:
            kept[name] = _checked(inner, schema["properties"][name], below, unknown, wrong)
        elif schema.get("x-kubernetes-preserve-unknown-fields"):
            kept[name] = inner
        else:
            unknown.append(below)
    missing = [name for name in schema.get("required", []) if name not in value]
    wrong.extend(f"{path}.{name}: Required value".lstrip(".") for name in missing)
    return kept


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _selected(obj: Object, query: dict[str, str]) -> bool:
    labels = obj["metadata"].get("labels", {})
    wanted = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
    if any(labels.get(key) != value for key, value in wanted):
        return False
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return name in ("", obj["metadata"]["name"])


class Api(Protocol):
    """What stands behind the HTTP."""

    def answer(
        self, method: str, target: str, authorization: str | None, body: bytes
    ) -> Object | Iterator[Object]:
        """What a request gets: an object, or a stream of them (Refusal, ConnectionAbortedError)."""

    def refuse(self, refusal: Refusal) -> str:
        """The body of a refusal."""


class Http(ThreadingHTTPServer):
    """An API's HTTP on loopback, served until it is closed."""

    daemon_threads = True

    def __init__(self, api: Api, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, address: Any) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Http
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            answer = self.server.api.answer(
                self.command, self.path, self.headers.get("Authorization"), body
            )
            if isinstance(answer, dict):
                self._send(201 if self.command == "POST" else 200, json.dumps(answer))
            else:
                self._stream(answer)
        except Refusal as refusal:
            self._send(refusal.code, self.server.api.refuse(refusal))
        except ConnectionAbortedError:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, content: str) -> None:
        self.send_response(code)
        kind = "application/json" if content.startswith("{") else "text/plain"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def _stream(self, events: Iterator[Object]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002
        pass
