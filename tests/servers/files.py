"""A web server on loopback that hands out bytes, and misbehaves as it is told."""

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


@dataclass
class Request:
    """A request that came."""

    path: str
    """With the query."""
    headers: dict[str, str]
    """Names in lower case."""


@dataclass
class Answer:
    """What to answer to one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    """None: the file."""
    cut: int | None = None
    """Drop the connection after so many bytes of the body."""


class Files:
    """The server, while its context lasts: `files` by path, and answers to come before them."""

    def __init__(self, *, ranges: bool = True, token: str | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        """Sent with every file."""
        self.ranges, self.token = ranges, token
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda _request: None
        self._answers: dict[str, deque[Answer]] = defaultdict(deque)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def other_host(self) -> str:
        """The same server under another name."""
        return f"http://localhost:{self._server.server_port}"

    def answer(self, path: str, *answers: Answer) -> None:
        """Give these answers to the next requests for the path; then the file."""
        self._answers[path].extend(answers)

    def next_answer(self, path: str) -> Answer:
        queue = self._answers[path]
        return queue.popleft() if queue else Answer()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("FilesHandler", (Handler,), {"server_of": self})

    def __enter__(self) -> "Files":
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
    server_of: Files
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        files = self.server_of
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers)
        files.requests.append(request)
        files.on_request(request)
        path = urlsplit(self.path).path
        answer = files.next_answer(path)
        token = headers.get("authorization")
        if answer.status == 200 and files.token and token != f"Bearer {files.token}":
            answer = Answer(401, content=b"")
        content = answer.content if answer.content is not None else files.files.get(path)
        if content is None:
            answer, content = (
                Answer(404 if answer.status == 200 else answer.status, answer.headers),
                b"",
            )
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        status, sent = answer.status, dict(answer.headers)
        if status == 200:
            sent = {"ETag": etag, **files.headers, **sent}
            wanted = headers.get("range", "").removeprefix("bytes=")
            if wanted and files.ranges and headers.get("if-range", etag) == etag:
                first, _, last = wanted.partition("-")
                status, total = 206, len(content)
                end = min(int(last), total - 1) if last else total - 1
                if int(first) > end:
                    status, content = 416, b""
                    sent["Content-Range"] = f"bytes */{total}"
                else:
                    content = content[int(first) : end + 1]
                    sent["Content-Range"] = f"bytes {first}-{end}/{total}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **sent}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Stay silent."""
