"""A Hugging Face Hub on loopback, for models and data sets in plain folders.

It answers what huggingface_hub, transformers and datasets ask, with the Hub's own headers and error
codes (https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_http.py).
Clients read HF_ENDPOINT when they are imported, so steps that shall talk to it run as processes.
"""

import fnmatch
import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = ("*.safetensors", "*.parquet", "*.bin", "*.gguf", "*.onnx", "*.pth")
STRANGER = "hf_stranger"
"""A token the Hub knows, of a user who has accepted no licence."""

SIGNATURE = "s1gned%2fby-the-hub"
"""Of the links to the CDN."""


@dataclass(frozen=True)
class File:
    """One file of a repository."""

    path: Path

    @property
    def lfs(self) -> bool:
        """Whether its bytes come from the CDN."""
        return any(fnmatch.fnmatch(self.path.name, pattern) for pattern in LFS)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def blob(self) -> str:
        """Its ID in git: of an LFS file, that of the pointer."""
        content = self.path.read_bytes()
        if self.lfs:
            content = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {len(content)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def entry(self, name: str) -> dict[str, Any]:
        """The file as the tree lists it."""
        entry = {"type": "file", "path": name, "size": self.path.stat().st_size, "oid": self.blob}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": entry["size"], "pointerSize": 132}
        return entry

    def sibling(self, name: str) -> dict[str, Any]:
        """The file as the repository's information lists it with `blobs=true`."""
        size = self.path.stat().st_size
        sibling = {"rfilename": name, "size": size, "blobId": self.blob}
        if self.lfs:
            sibling["lfs"] = {"sha256": self.sha256, "size": size, "pointerSize": 132}
        return sibling


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    files: dict[str, File]

    @classmethod
    def of(cls, folder: Path) -> "Commit":
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): File(path) for path in paths})

    @property
    def sha(self) -> str:
        """Like git's: another content is another commit."""
        lines = (f"{name} {file.blob}\n" for name, file in self.files.items())
        return hashlib.sha1("".join(lines).encode()).hexdigest()


class RefusedError(Exception):
    """An answer that is an error: its status, the Hub's code for it, and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Hub:
    """The server, while its context lasts.

    Repositories are the folders `root/models/{org}/{name}` and `root/datasets/{org}/{name}`, their
    branch main; a folder `{name}@{revision}` beside one is another revision of it. `token` is that
    of a user who has accepted the licences; `gated` names the repositories (`org/name`) that want it.
    """

    def __init__(
        self, root: Path, *, token: str | None = None, gated: frozenset[str] = frozenset()
    ) -> None:
        self.root, self.token, self.gated = root, token, gated
        self.requests: list[str] = []
        """Every request that came, as `GET /path`."""
        self.corrupted: set[str] = set()
        self.cdn_failures: list[int] = []
        """Statuses that the CDN answers to the next requests for content."""
        self.cut: int | None = None
        """Of files no more than so many bytes are sent, as if that were all."""
        self._failure = 0
        self._failures = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs beside its own environment."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}

    def fail(self, status: int, times: int) -> None:
        """Answer the next requests with this status, whatever they ask."""
        with self._lock:
            self._failure, self._failures = status, times

    def corrupt(self, path: str) -> None:
        """Serve wrong bytes of the right length for this path in any repository."""
        self.corrupted.add(path)

    def commit(self, repository: str, revision: str = "main", kind: str = "models") -> Commit:
        """The state of a repository at a branch, tag or commit."""
        folder = self.root / kind / repository
        for candidate in (folder, *folder.parent.glob(f"{folder.name}@*")):
            commit = Commit.of(candidate)
            name = candidate.name.partition("@")[2] or "main"
            if revision in (name, commit.sha):
                return commit
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def failing(self) -> int:
        """The status that this request shall fail with, or 0."""
        with self._lock:
            if not self._failures:
                return 0
            self._failures -= 1
            return self._failure

    def check_access(self, kind: str, repository: str, token: str, *, content: bool) -> None:
        """Refuse a wrong token, an unknown repository, and the content of a gated one."""
        if token and self.token is not None and token not in (self.token, STRANGER):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if not (self.root / kind / repository).is_dir():
            raise RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repository in self.gated and (not token or token != self.token):
            raise RefusedError(
                403 if token else 401,
                "GatedRepo",
                f"Access to {repository} is restricted and you are not in the authorized list.",
            )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("HubHandler", (Handler,), {"hub": self})

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """The Hub's routes."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    # Headers and body are two packets; Nagle's algorithm would hold the second back for 40 ms.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer GET, HEAD and POST alike."""
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asks_for_repository = url.path != "/api/agent-harnesses"  # which clients ask of themselves
        if asks_for_repository:
            self.hub.requests.append(f"{self.command} {self.path}")
        if asks_for_repository and (status := self.hub.failing()):
            self._send(status, b"{}", {"Retry-After": "0"})  # nobody shall wait in a test
            return
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        form = parse_qs(body.decode())
        try:
            self._route(parts, query, form)
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    do_HEAD = do_GET  # noqa: N815  # http.server's names
    do_POST = do_GET  # noqa: N815

    def _route(self, parts: list[str], query: dict[str, str], form: dict[str, list[str]]) -> None:
        match parts:
            case ["api", "whoami-v2"]:
                self._whoami()
            case ["api", ("models" | "datasets") as kind, org, name]:
                self._information(kind, f"{org}/{name}", "main", query)
            case ["api", ("models" | "datasets") as kind, org, name, "revision", revision]:
                self._information(kind, f"{org}/{name}", revision, query)
            case ["api", ("models" | "datasets") as kind, org, name, "tree", revision, *path]:
                self._tree(kind, f"{org}/{name}", revision, "/".join(path), query)
            case ["api", ("models" | "datasets") as kind, org, name, "paths-info", revision]:
                self._paths(kind, f"{org}/{name}", revision, form.get("paths", []))
            case ["cdn", kind, org, name, revision, *path]:
                self._cdn(kind, f"{org}/{name}", revision, "/".join(path))
            case ["datasets", org, name, "resolve", revision, *path]:
                self._resolve("datasets", f"{org}/{name}", revision, "/".join(path))
            case [org, name, "resolve", revision, *path]:
                self._resolve("models", f"{org}/{name}", revision, "/".join(path))
            case _:
                raise RefusedError(404, "", "Sorry, we can't find the page you are looking for.")

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _whoami(self) -> None:
        if not self._token or self._token not in (self.hub.token, STRANGER):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        self._json({"name": "user", "type": "user", "auth": {"type": "access_token"}})

    def _information(
        self, kind: str, repository: str, revision: str, query: dict[str, str]
    ) -> None:
        self.hub.check_access(kind, repository, self._token, content=False)
        commit = self.hub.commit(repository, revision, kind)
        siblings = [
            file.sibling(name) if "blobs" in query else {"rfilename": name}
            for name, file in commit.files.items()
        ]
        gated = "manual" if repository in self.hub.gated else False
        self._json(
            {
                "id": repository,
                "sha": commit.sha,
                "private": False,
                "gated": gated,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(
        self, kind: str, repository: str, revision: str, path: str, query: dict[str, str]
    ) -> None:
        self.hub.check_access(kind, repository, self._token, content=False)
        commit = self.hub.commit(repository, revision, kind)
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, file in commit.files.items():
            if not name.startswith(prefix):
                continue
            *folders, _ = name.removeprefix(prefix).split("/")
            recursive = query.get("recursive", "").lower() == "true"
            for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
                folder = prefix + "/".join(folders[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                entries[name] = file.entry(name)
        if path and not entries:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        self._json(list(entries.values()), {"X-Repo-Commit": commit.sha})

    def _paths(self, kind: str, repository: str, revision: str, paths: list[str]) -> None:
        self.hub.check_access(kind, repository, self._token, content=False)
        files = self.hub.commit(repository, revision, kind).files
        self._json([files[path].entry(path) for path in paths if path in files])

    def _resolve(self, kind: str, repository: str, revision: str, path: str) -> None:
        self.hub.check_access(kind, repository, self._token, content=True)
        commit = self.hub.commit(repository, revision, kind)
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, b"Entry not found", headers)
        elif file.lfs:
            # Another host, as the Hub's CDN is: the client must see this answer's own headers.
            location = f"{self.hub.url}/cdn/{kind}/{repository}/{commit.sha}/{quote(path)}"
            location += f"?Signature={SIGNATURE}"
            headers |= {
                "Location": location.replace("127.0.0.1", "localhost"),
                "X-Linked-Etag": f'"{file.sha256}"',
                "X-Linked-Size": str(file.path.stat().st_size),
            }
            self._send(302, b"", headers)
        else:
            self._content(path, file, headers | {"ETag": f'"{file.blob}"'})

    def _cdn(self, kind: str, repository: str, revision: str, path: str) -> None:
        if self._token:
            raise RefusedError(400, "", "a signed link wants no token beside it")
        if self.hub.cdn_failures:
            raise RefusedError(self.hub.cdn_failures.pop(0), "", "not now")
        file = self.hub.commit(repository, revision, kind).files[path]
        self._content(path, file, {"ETag": f'"{file.sha256}"'})

    def _content(self, path: str, file: File, headers: dict[str, str]) -> None:
        content = file.path.read_bytes()
        if self.command == "GET":
            content = content[: self.hub.cut]
        if path in self.hub.corrupted:
            content = bytes(byte ^ 0xFF for byte in content)
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            self._send(200, content, headers)
            return
        first, _, last = asked.partition("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        if start > end:
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers)

    def _json(self, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._send(
            200,
            json.dumps(answer).encode(),
            {"Content-Type": "application/json", **(headers or {})},
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Stay silent; `Hub.requests` tells what came."""
