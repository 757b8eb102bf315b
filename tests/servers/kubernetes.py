"""A Kubernetes API server on loopback: any resource by its path, as the real one answers for it.

Objects are created (with generateName, dry run and strict validation), read, listed (labels, fields,
pages), watched (from a resource version, 410 where it is too old), patched and deleted (in the
background, or in the foreground after what they own); logs of containers are read and followed.
Codes and bodies are those of an API server 1.36.
"""

import copy
import itertools
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]

PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?P<log>/log)?)?"
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
LARGEST_REQUEST, LARGEST_OBJECT = 3 << 20, 3 << 19
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
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Container:
    """What one run of a container has written, as the kubelet keeps it."""

    written: list[tuple[datetime, bytes]] = field(default_factory=list)
    ended: bool = False


@dataclass
class Overload:
    """Requests that are too many: from the first on refused until its Retry-After is over."""

    method: str
    part: str
    seconds: int
    until: float = 0.0
    refused: int = 0

    def refuse(self, method: str, target: str) -> None:
        """Raise the refusal of one of them."""
        if method != self.method or self.part not in target:
            return
        now = time.monotonic()
        self.until = self.until or now + self.seconds
        if now < self.until:
            self.refused += 1
            # Of priority and fairness; no Status.
            words = "Too many requests, please try again later.\n"
            raise Refusal(429, "", words, {"Retry-After": str(self.seconds)})


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
        self._containers: dict[tuple[str, str], list[Container]] = {}
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._events: list[tuple[int, str, str, Object]] = []
        self._versions = itertools.count(1000)
        self._oldest = 0
        self._cuts = 0
        self._failures: list[list[Any]] = []
        self._overloads: list[Overload] = []
        self._is_down = False
        self._http = Http(self, self.tls)
        return self

    def go_down(self) -> None:
        """Refuse connections from now on, and drop those that are open."""
        self._is_down = True
        self.cut()
        self._http.close()

    def come_back(self) -> None:
        """Answer again, at the same address."""
        self._is_down = False
        self._http = Http(self, self.tls, self._http.server_address[1])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.go_down()

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

    def all(self, plural: str, namespace: str = "default") -> list[Object]:
        """All objects of a kind."""
        with self.changed:
            return self._matching(self._kind(plural), namespace, {})

    def created(self, plural: str) -> int:
        """How many objects of a kind there ever were."""
        with self.changed:
            return sum(
                key.startswith(f"{plural}/") and type_ == "ADDED"
                for _, key, type_, _ in self._events
            )

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

    def start(self, pod: str, namespace: str = "default") -> None:
        """A container of the pod begins, the first one or after a restart."""
        with self.changed:
            self._containers.setdefault((namespace, pod), []).append(Container())
            self.changed.notify_all()

    def log(
        self, pod: str, text: str | bytes, at: datetime | None = None, namespace: str = "default"
    ) -> None:
        """What the pod's container writes: whole lines, or pieces of one."""
        written = text.encode() if isinstance(text, str) else text
        with self.changed:
            container = self._containers[namespace, pod][-1]
            container.written.append((at or datetime.now(UTC), written))
            self.changed.notify_all()

    def end(self, pod: str, namespace: str = "default") -> None:
        """The pod's container has ended; what it wrote can still be read."""
        with self.changed:
            self._containers[namespace, pod][-1].ended = True
            self.changed.notify_all()

    def fail(
        self,
        method: str,
        part: str,
        status: int,
        times: int = 1,
        body: str = "<html>out of order</html>",
        **headers: str,
    ) -> None:
        """Answer the next requests whose target has `part` so; a status of 0 drops them."""
        self._failures.append([method, part, status, times, headers, body])

    def overload(self, method: str, part: str, seconds: int) -> Overload:
        """Answer 429 to the next such request, and to all that do not wait as long as it says."""
        self._overloads.append(Overload(method, part, seconds))
        return self._overloads[-1]

    def lose(self, method: str, part: str) -> None:
        """Do what the next such request asks, and drop it without an answer."""
        self._failures.append([method, part, -1, 1])

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
    ) -> Object | Iterator[Object | bytes]:
        """What a request gets, after it has had its effect."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        with self.changed:
            if self._is_down:  # on a connection that has been idle since
                raise ConnectionAbortedError
            self.requests.append((method, target))
            self.changed.notify_all()
            lost = False
            for overload in self._overloads:
                overload.refuse(method, target)
            for failure in self._failures:
                if failure[0] == method and failure[1] in target and failure[3]:
                    failure[3] -= 1
                    if failure[2] < 0:
                        lost = True
                        break
                    if not failure[2]:
                        raise ConnectionAbortedError
                    told = {name.replace("_", "-"): value for name, value in failure[4].items()}
                    raise Refusal(failure[2], "", failure[5], told)
            found = PATH.fullmatch(parts.path)
            kind = found and self._known(found)
            if not found or not kind:
                raise Refusal(404, "", "404 page not found\n")
            namespace, name = found["namespace"] or "", found["name"] or ""
            if len(body) > LARGEST_REQUEST:
                words = f"Request entity too large: limit is {LARGEST_REQUEST}"
                raise Refusal(413, "RequestEntityTooLarge", words)
            if len(body) > LARGEST_OBJECT and "dryRun" not in query:
                raise Refusal(500, "InternalError", "etcdserver: request is too large")
            verb = VERBS.get(method) or ("get" if name else "list")
            if found["log"]:
                self._let_in(authorization, "get", replace(kind, plural="pods/log"))
                return self._log(namespace, self._find(kind, namespace, name), query)
            self._let_in(authorization, "watch" if "watch" in query else verb, kind)
            answer = self._do(verb, kind, namespace, name, query, body)
            if lost:
                raise ConnectionAbortedError
            return answer

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
    ) -> Object | Iterator[Object | bytes]:
        if verb == "list":
            self._refuse_fields(kind, query)
            return (
                self._watch(kind, namespace, query)
                if "watch" in query
                else self._list(kind, namespace, query)
            )
        if verb == "get":
            return self._find(kind, namespace, name)
        if verb == "delete":
            return self._delete(kind, namespace, name, json.loads(body or "{}"))
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

    def _refuse_fields(self, kind: Kind, query: dict[str, str]) -> None:
        """Of a custom resource only two fields can be selected by."""
        for field_, _ in _pairs(query, "fieldSelector"):
            if "." in kind.group and field_ not in ("metadata.name", "metadata.namespace"):
                raise Refusal(400, "BadRequest", f"field label not supported: {field_}")

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> Object:
        items = self._matching(kind, namespace, query)
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 0) or len(items))
        metadata: Object = {"resourceVersion": str(next(self._versions))}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
            metadata["remainingItemCount"] = len(items) - start - limit
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
        # The real server ends a watch after half an hour or more, unless it is told when.
        until = time.monotonic() + int(query.get("timeoutSeconds", 1800))

        def changes() -> Iterator[Object]:
            yield from ({"type": "ADDED", "object": obj} for obj in there)
            place = told
            while True:
                with self.changed:
                    while place == len(self._events) and (cuts, oldest) == (
                        self._cuts,
                        self._oldest,
                    ):
                        if not self.changed.wait(until - time.monotonic()):
                            return
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

    def _log(self, namespace: str, pod: Object, query: dict[str, str]) -> Iterator[bytes]:
        """What the pod's container wrote: the last one, or with `previous` the one before it."""
        name = pod["metadata"]["name"]
        runs = self._containers.get((namespace, name), [])
        container, cuts = query.get("container", ""), self._cuts
        if "previous" in query and query["previous"] == "true":
            if len(runs) < 2:
                raise Refusal(
                    400, "BadRequest",
                    f'previous terminated container "{container}" in pod "{name}" not found',
                )  # fmt: skip
            run = runs[-2]
        elif not runs:
            raise Refusal(
                400, "BadRequest",
                f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating',
            )  # fmt: skip
        else:
            run = runs[-1]
        since = datetime.min.replace(tzinfo=UTC)
        if "sinceTime" in query:  # the kubelet is told whole seconds
            since = datetime.fromisoformat(query["sinceTime"]).replace(microsecond=0)
        stamps, follow = query.get("timestamps") == "true", query.get("follow") == "true"
        first = 0
        if "tailLines" in query:
            ends = [i for i, (_, text) in enumerate(run.written, 1) if text.endswith(b"\n")]
            first = ([0] * int(query["tailLines"]) + [0, *ends])[-int(query["tailLines"]) - 1]

        def written() -> Iterator[bytes]:
            place, at_start = first, True
            while True:
                with self.changed:
                    while follow and place == len(run.written) and not run.ended:
                        if cuts != self._cuts:
                            raise ConnectionAbortedError
                        gone = ("pods", namespace, name) not in self._objects
                        if gone or not self.changed.wait(60):
                            return
                    if cuts != self._cuts:
                        raise ConnectionAbortedError
                    if place == len(run.written):
                        return
                    at, text = run.written[place]
                place += 1
                if at < since:
                    continue
                # The pieces of a long line come with one time, in front of the first.
                stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ").encode()
                yield (stamp if stamps and at_start else b"") + text
                at_start = text.endswith(b"\n")

        return written()

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
        uid = f"uid-{name}-{next(self._versions)}"
        metadata |= {"name": name, "uid": uid, "creationTimestamp": now, "generation": 1}
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

    def _delete(
        self, kind: Kind, namespace: str, name: str, options: Object | None = None
    ) -> Object:
        """Take it away with what it owns; in the foreground, or with finalizers, only mark it."""
        obj, options = self._find(kind, namespace, name), options or {}
        uid = obj["metadata"]["uid"]
        if (options.get("preconditions") or {}).get("uid") not in (None, uid):
            message = (
                f'Operation cannot be fulfilled on {kind.plural}.{kind.group} "{name}": Precondition '
                f"failed: UID in precondition: {options['preconditions']['uid']}, UID in object meta: {uid}"
            )
            raise Refusal(409, "Conflict", message)
        finalizers = obj["metadata"].get("finalizers", [])
        if options.get("propagationPolicy") == "Foreground":
            finalizers = [*finalizers, "foregroundDeletion"]
        if finalizers:
            now = obj["metadata"]["creationTimestamp"]
            marked = {"metadata": {"deletionTimestamp": now, "finalizers": finalizers}}
            return self._store(kind, namespace, _merged(obj, marked), "MODIFIED")
        self._remove(kind, namespace, obj)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def collect(self, plural: str, name: str, namespace: str = "default") -> None:
        """The garbage collector: what is marked goes, after all that it owns."""
        with self.changed:
            kind = self._kind(plural)
            self._remove(kind, namespace, self._find(kind, namespace, name))

    def _remove(self, kind: Kind, namespace: str, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        for (plural, place, _), other in list(self._objects.items()):
            owners = other["metadata"].get("ownerReferences", [])
            if place == namespace and any(owner["uid"] == uid for owner in owners):
                self._remove(self._kind(plural), place, other)
        self._objects.pop((kind.plural, namespace, obj["metadata"]["name"]), None)
        self._tell(next(self._versions), kind, namespace, "DELETED", obj)


def _checked(value: Any, schema: Object, path: str, unknown: list[str], wrong: list[str]) -> Any:
    """The value without what the schema does not know; faults go into the two lists."""
    kind = TYPES.get(schema.get("type", ""), object)
    is_number_for_bool = isinstance(value, bool) and schema.get("type") in ("integer", "number")
    if not isinstance(value, kind) or is_number_for_bool:
        wrong.append(f"{path}: Invalid value: must be of type {schema['type']}")
        return value
    wrong.extend(f"{path}: Invalid value: {problem}" for problem in _out_of_bounds(value, schema))
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


def _out_of_bounds(value: Any, schema: Object) -> Iterator[str]:
    """What a value of the right type is not allowed to be."""
    if "enum" in schema and value not in schema["enum"]:
        yield f"supported values: {schema['enum']}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"should match '{schema['pattern']}'"
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"should be greater than or equal to {schema['minimum']}"
    if isinstance(value, (str, list)):
        least, most = (("minLength", "maxLength"), ("minItems", "maxItems"))[
            isinstance(value, list)
        ]
        if not schema.get(least, 0) <= len(value) <= schema.get(most, len(value)):
            yield f"its length must be from {schema.get(least, 0)} to {schema.get(most)}"


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
    return all(labels.get(key) == value for key, value in _pairs(query, "labelSelector")) and all(
        _field(obj, path) == value for path, value in _pairs(query, "fieldSelector")
    )


def _field(obj: Any, path: str) -> str:
    for part in path.split("."):
        obj = (obj or {}).get(part)
    return str(obj or "")


def _pairs(query: dict[str, str], selector: str) -> list[list[str]]:
    return [pair.split("=", 1) for pair in query.get(selector, "").split(",") if pair]


class Api(Protocol):
    """What stands behind the HTTP."""

    def answer(
        self, method: str, target: str, authorization: str | None, body: bytes
    ) -> Object | Iterator[Object | bytes]:
        """What a request gets: an object, or a stream (Refusal, ConnectionAbortedError)."""

    def refuse(self, refusal: Refusal) -> str:
        """The body of a refusal."""


class Http(ThreadingHTTPServer):
    """An API's HTTP on loopback, served until it is closed."""

    daemon_threads = True

    def __init__(self, api: Api, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
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
            self._send(refusal.code, self.server.api.refuse(refusal), refusal.headers)
        except ConnectionAbortedError:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, content: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        kinds = {"{": "application/json", "<": "text/html"}
        self.send_header("Content-Type", kinds.get(content[:1], "text/plain"))
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def _stream(self, pieces: Iterator[Object | bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for each in pieces:
            piece = each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n"
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002
        pass
