"""Base models in OCI images, as KServe's modelcars hold them: files under /models.

Nothing of an image is unpacked as such: its layers are overlaid in memory, by name, and only the
regular files of the model are written, so no member can reach out of the folder.
https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

import logging
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from steps import files
from steps.base_model import skopeo
from steps.base_model.folder import Folder
from steps.base_model.model import Examined, ModelSource
from steps.errors import DataError, UsageError

log = logging.getLogger(__name__)

_REFERENCE = re.compile(
    r"(?P<name>[^@\s/]+/[^@\s]+?)(?P<tag>:\w[\w.-]{0,127})?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MOST_MEMBERS = 200_000
"""Of an image: each is held in memory. An operating system with Python has a tenth of that."""
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True)
class Reference:
    """What stands in an oci:// address."""

    name: str
    """Registry and repository."""
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, uri: str) -> "Reference":
        """Raises UsageError where the address names no image."""
        found = _REFERENCE.fullmatch(uri.removeprefix("oci://"))
        if not found:
            raise UsageError(f"{uri!r}: write oci://registry/repository:tag or @sha256:...")
        return cls(found["name"], found["tag"] or ":latest", found["digest"])


@dataclass(frozen=True)
class Modelcar:
    """An image with a model in it."""

    uri: str
    reference: Reference
    pull_secret: str = field(repr=False)
    """Content of a Docker config.json; empty takes what skopeo finds on this machine."""
    cache: Path

    def at(self, revision: str) -> "Modelcar":
        """The image of that digest."""
        return replace(self, reference=replace(self.reference, digest=revision))

    def check(self) -> Examined | None:
        """See Source. Only an image in the cache can be looked into."""
        digest = skopeo.manifest_digest(self._image(self.reference.digest), self.pull_secret)
        folder = self._folder(digest)
        return folder.check() if folder.path.exists() else None

    def fetch(self) -> ModelSource:
        """See Source. An image that is in the cache is not asked for again."""
        digest = self.reference.digest or skopeo.manifest_digest(
            self._image(None), self.pull_secret
        )
        folder = self._folder(digest)
        if not folder.path.exists():
            self._pull(digest, folder)
        folder.check()
        return ModelSource(self.uri, folder.path, digest, portable=True)

    def _image(self, digest: str | None) -> str:
        name = self.reference.name
        return f"{name}@{digest}" if digest else f"{name}{self.reference.tag}"

    def _folder(self, digest: str) -> Folder:
        # Not every volume takes a colon in a name.
        return Folder(self.uri, self.cache / digest.replace(":", "-"), portable=True)

    def _pull(self, digest: str, folder: Folder) -> None:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self.cache.mkdir(parents=True, exist_ok=True)
        # Runs that share the cache fetch an image once, and what a killed one left is removed.
        with WeakFileLock(self.cache / f".{folder.path.name}.lock"):
            if folder.path.exists():
                return
            log.info("fetching %s at %s", self.uri, digest)
            with files.atomic_folder(folder.path) as partial:
                image = partial / ".image"
                image.mkdir()
                layers = skopeo.copy_layers(self._image(digest), self.pull_secret, image)
                extract(self.uri, layers, partial)
                shutil.rmtree(image)
                replace(folder, path=partial).check()


@dataclass(frozen=True)
class _File:
    """A member of a layer that is no folder."""

    layer: Path
    member: tarfile.TarInfo


def extract(where: str, layers: list[Path], folder: Path) -> None:
    """Write the files of the model in these layers (plain tar files, lowest first) to `folder`.

    Raises DataError where there is no model, or a member or link that leads out of the image.
    """
    try:
        overlaid = _overlay(where, layers)
        root = _root(where, overlaid)
        chosen = {path: _followed(where, path, overlaid) for path in _below(root, overlaid)}
        for layer in layers:
            with tarfile.open(layer, "r:") as tar:
                _write(tar, layer, chosen, root, folder)
    except tarfile.TarError as error:
        raise DataError(f"{where}: a layer cannot be read: {error}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{where}: {error.filename} is both a file and a folder") from error


def _overlay(where: str, layers: list[Path]) -> dict[str, _File]:
    """What the image shows: the files of each layer over those of the layers below."""
    shown: dict[str, _File] = {}
    count = 0
    for layer in layers:
        members: dict[str, tarfile.TarInfo] = {}
        with tarfile.open(layer, "r:") as tar:
            for member in tar:
                count += 1
                if count > _MOST_MEMBERS:
                    raise DataError(
                        f"{where}: its layers hold more than {_MOST_MEMBERS:,} files, as no "
                        "model's do; refused"
                    )
                path = _inside(where, member.name)
                if member.islnk():  # another name of a file that stands before it in its layer
                    member = members.get("/".join(_parts(member.linkname)), member)
                members[path] = member
        gone = set()
        for path, member in members.items():
            parent, name = posixpath.split(path)
            if name == _OPAQUE:
                gone.add(f"{parent}/")
            elif name.startswith(_WHITEOUT):
                gone.add(posixpath.join(parent, name.removeprefix(_WHITEOUT)))
            elif not member.isdir():
                gone.add(path)
        shown = {path: file for path, file in shown.items() if gone.isdisjoint(_hiding(path))}
        shown |= {
            path: _File(layer, member)
            for path, member in members.items()
            if not member.isdir() and not posixpath.basename(path).startswith(_WHITEOUT)
        }
    return shown


def _inside(where: str, name: str) -> str:
    """The member's path from the image's root."""
    parts = _parts(name)
    if ".." in parts:
        raise DataError(f"{where}: a layer holds {name!r}, which leads out of the image; refused")
    return "/".join(parts)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _hiding(path: str) -> Iterator[str]:
    """What a layer above may hold that hides the path: itself, a folder it is in, its content."""
    yield path
    while path:
        path = posixpath.dirname(path)
        yield path
        yield f"{path}/"


def _root(where: str, shown: dict[str, _File]) -> str:
    """The folder of the model: under models/ if there is one, and the least deep."""
    weights = {posixpath.dirname(path) for path in shown if path.endswith((".safetensors", ".bin"))}
    found = [
        parent
        for parent, name in map(posixpath.split, shown)
        if name == "config.json" and parent in weights
    ]
    if not found:
        raise DataError(
            f"{where}: no folder of the image has a config.json and weights in it; a modelcar "
            "holds a model under /models"
        )
    return min(found, key=lambda path: (path.split("/")[0] != "models", path.count("/"), path))


def _below(root: str, shown: dict[str, _File]) -> list[str]:
    return [path for path in shown if not root or path.startswith(f"{root}/")]


def _followed(where: str, path: str, shown: dict[str, _File]) -> _File:
    """The regular file that the path stands for, through symbolic links inside the image."""
    file, seen = shown[path], {path}
    while file.member.issym():
        target = posixpath.join("/", posixpath.dirname(path), file.member.linkname)
        path = posixpath.normpath(target).lstrip("/")
        if path in seen or path not in shown:
            raise DataError(
                f"{where}: the link {file.member.name!r} -> {file.member.linkname!r} leads to no "
                "file of the image; refused"
            )
        file = shown[path]
        seen.add(path)
    if file.member.islnk():
        raise DataError(
            f"{where}: the hard link {file.member.name!r} -> {file.member.linkname!r} leads to no "
            "file of its layer; refused"
        )
    if file.member.issparse():
        raise DataError(
            f"{where}: {file.member.name!r} is sparse, as no model's files are; refused"
        )
    if not file.member.isreg():
        raise DataError(f"{where}: {file.member.name!r} is neither a file nor a link; refused")
    return file


def _write(
    tar: tarfile.TarFile, layer: Path, chosen: dict[str, _File], root: str, folder: Path
) -> None:
    """Write the chosen files of one layer; one that goes by several names is there once."""
    written: dict[int, Path] = {}
    for path, file in chosen.items():
        if file.layer != layer:
            continue
        target = folder / path.removeprefix(f"{root}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        first = written.setdefault(file.member.offset, target)
        if first is not target:
            os.link(first, target)
            continue
        content = tar.extractfile(file.member)
        assert content is not None  # it is a regular file
        with content, target.open("xb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
