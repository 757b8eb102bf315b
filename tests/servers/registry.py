"""A private container registry on loopback (docker-registry), and images made for it by hand.

Needs docker-registry, htpasswd and skopeo (Debian: docker-registry apache2-utils skopeo).
"""

import base64
import gzip
import hashlib
import io
import json
import socket
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_MEDIA = "application/vnd.oci.image"
GZIP = b"\x1f\x8b"
USER, PASSWORD = "somebody", "correct-horse-battery"

Layer = Mapping[str, str]
"""Text of the files of a layer, by path."""


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A tar member of any kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tar(layer: Layer, more: Iterable[tarfile.TarInfo] = ()) -> bytes:
    """A layer's tar; `more` are members without content."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, text in layer.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
        for info in more:
            archive.addfile(info)
    return written.getvalue()


def write_image(
    folder: Path, layers: Iterable[bytes], index_for: str = "", *, plain: bool = False
) -> str:
    """Write an image of these tars in the OCI layout, and return the digest of its manifest.

    With an architecture it is the one image of an index, and that digest is returned. What is
    compressed already stays as it is, and with `plain` all does.

    https://github.com/opencontainers/image-spec/blob/main/image-layout.md
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        media = f"{_MEDIA}.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}

    tars = list(layers)
    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in tars]
    config = {
        "architecture": index_for or "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [
            blob(
                content if plain or content.startswith(GZIP) else gzip.compress(content, mtime=0),
                "layer.v1.tar" if plain else "layer.v1.tar+gzip",
            )
            for content in tars
        ],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    if index_for:
        entry["platform"] = {"os": "linux", "architecture": index_for}
        index = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [entry]}
        entry = blob(json.dumps(index).encode(), "index.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


class Registry:
    """The server, while its context lasts; only USER with PASSWORD may read and write."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        """A registry that keeps its images in the folder, with TLS where a certificate is given."""
        self.folder, self.certificate = folder, certificate
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """A user of this machine whose skopeo speaks http with it, and has no credentials."""
        return {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}

    def pull_secret(self, password: str = PASSWORD) -> str:
        """A Docker config.json with which the registry can be read."""
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        return json.dumps({"auths": {self.host: {"auth": auth}}})

    @property
    def _pem(self) -> str:
        return str(self.certificate or "")

    def blob(self, content: bytes) -> Path:
        """Where the registry keeps these bytes."""
        digest = hashlib.sha256(content).hexdigest()
        return next(self.folder.glob(f"storage/**/sha256/??/{digest}/data"))

    def push(self, name: str, layers: Iterable[bytes], *options: str, index_for: str = "") -> str:
        """Put an image of these tars there under `name:tag`, and return its digest."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            layout, digest = Path(scratch, "layout"), Path(scratch, "digest")
            write_image(layout, layers, index_for, plain="--preserve-digests" in options)
            options = (*options, "--all") if index_for else options
            given = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}", *options)
            images = (f"oci:{layout}", f"docker://{self.host}/{name}")
            command = ["skopeo", "copy", "--quiet", f"--digestfile={digest}", *given, *images]
            subprocess.run(command, check=True)
            return digest.read_text()

    def put(self, name: str, manifest: object, kind: str = "manifest") -> None:
        """Put a manifest there under `name:tag` that skopeo would not make."""
        repository, _, tag = name.partition(":")
        request = urllib.request.Request(
            f"http://{self.host}/v2/{repository}/manifests/{tag}",
            data=json.dumps(manifest).encode(),
            headers={
                "Authorization": f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}",
                "Content-Type": f"{_MEDIA}.{kind}.v1+json",
            },
            method="PUT",
        )
        urllib.request.urlopen(request).close()

    def manifest(self, digest: str) -> dict[str, Any]:
        """The manifest of that digest."""
        found = self.folder.glob(f"storage/**/sha256/??/{digest.removeprefix('sha256:')}/data")
        read: dict[str, Any] = json.loads(next(found).read_bytes())
        return read

    def __enter__(self) -> "Registry":
        self.folder.mkdir(parents=True, exist_ok=True)
        users = subprocess.run(
            ["htpasswd", "-Bbn", USER, PASSWORD], check=True, capture_output=True
        )
        (self.folder / "htpasswd").write_bytes(users.stdout)
        settings = self.folder / ".config" / "containers" / "registries.conf"
        settings.parent.mkdir(parents=True)
        if self.certificate is None:
            settings.write_text(f'[[registry]]\nlocation = "{self.host}"\ninsecure = true\n')
        config = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "storage")}},
            "http": {"addr": self.host}
            | ({"tls": {"certificate": pem, "key": pem}} if (pem := self._pem) else {}),
            "auth": {"htpasswd": {"realm": "test", "path": str(self.folder / "htpasswd")}},
        }
        path = self.folder / "config.yml"
        path.write_text(json.dumps(config))  # YAML too
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        started = next((line for line in self._process.stderr if "listening on" in line), None)
        assert started, "docker-registry ended before it listened"
        # Unread lines would fill the pipe and stop the server.
        self._reader = threading.Thread(target=self._process.stderr.read)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process.wait()
