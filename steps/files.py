"""Files that are whole or not there: atomic writes, and digests of what was written."""

import contextlib
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from steps.errors import StepError, volume_error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` only when it is whole.

    The bytes are on the disk before the name is: a power cut leaves the old file or the new one.
    """
    with _renamed_when_whole(path, f".{path.name}.partial") as file:
        yield file


def write(path: Path, content: str | bytes) -> None:
    """Write a whole small file. Of several writers at once, one wins; none is disturbed."""
    with _renamed_when_whole(path, f".{path.name}.{uuid.uuid4().hex}.partial") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def _renamed_when_whole(path: Path, name: str) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(name)
    try:
        with naming(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the path where a write fails: the system does not say of what it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under `path`, in place of any older one, only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with writing(path):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the path where the volume does not take what is written: libraries do not say what it was."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, StepError) and (known := volume_error(error, path)):
            raise known from error
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; an older folder there is moved aside first and removed after."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, whether or not it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path, stopped: threading.Event | None = None) -> str:
    """The file's digest, in hex. Raises InterruptedError when it is stopped before the end."""
    digest = hashlib.sha256()
    # Not by hashlib.file_digest: its buffer is so large that it gets pages of its own, and to copy
    # to where these begin takes some processors five times as long
    # (https://xuanwo.io/2023/04-rust-std-fs-slower-than-python/).
    buffer = bytearray(64 << 10)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            if stopped and stopped.is_set():
                raise InterruptedError(f"{path}: stopped")
            digest.update(view[:read])
    return digest.hexdigest()


def git_blob(path: Path) -> str:
    """The ID that git has for the file's content, in hex: what the hub publishes of small files."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def from_here(text: str) -> Path:
    """The absolute path that the text is to who stands here; a `~name` of no user is a folder's name."""
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111  # Path's own raises RuntimeError there


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, which others may be removing meanwhile."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_size
    return total


def digest(path: Path) -> str:
    """The digest of a file, or of a folder: that of its sorted lines of `path sha256`."""
    if not path.is_dir():
        return sha256(path)
    lines = (f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in _files(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(
        (file for file in folder.rglob("*") if file.is_file()),
        key=lambda file: file.relative_to(folder).as_posix(),
    )
