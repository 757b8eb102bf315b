"""Images of a registry, by skopeo: what a name means now, and a copy of its layers."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steps import logs
from steps.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    StepError,
    TransientError,
    UsageError,
    VolumeError,
)
from steps.quantities import size
from steps.secrets import PULL_SECRET
from steps.signals import end_with_parent

_SECRET = f"the secret {PULL_SECRET.name!r} (key {PULL_SECRET.keys[0]})"

_ARCHITECTURE = "amd64"
# Weights hardly compress, and what is around them is small: more than this is no model.
_MOST_TIMES, _MOST_BESIDE = 20, 256 << 20
_LARGEST_CONFIG = 8 << 20  # and the manifest; skopeo takes no larger ones
_LOOKS_EVERY = 0.5

# What skopeo 1.9 to 1.20 and the registries behind it write to standard error.
_FAILURES: tuple[tuple[str, type[StepError], str], ...] = (
    (
        r"unauthorized|authentication required|access .* denied|denied:|\b401\b|\b403 \(?Forbidden|"
        r"invalid username/password",
        CredentialsError,
        f"have a Docker config.json that may read it in {_SECRET}, and check the name",
    ),
    (
        r"manifest unknown|name unknown|not found|\b404\b",
        DataError,
        "check the repository and the tag or digest",
    ),
    (r"invalid reference|must be lowercase", UsageError, "write oci://registry/repository:tag"),
    (r"no space left|read-only file system", VolumeError, "free or enlarge the volume"),
    (
        r"x509|server gave HTTP response",
        ConfigError,
        "name the file of the registry's CA in SSL_CERT_FILE (on a cluster: ca_bundle)",
    ),
    (
        r"policy\.json|signature|Source image rejected",
        ConfigError,
        "see containers-policy.json(5)",
    ),
)


def manifest_digest(image: str, pull_secret: str) -> str:
    """The digest, `sha256:...`, of the manifest that the name stands for now.

    Raises as `copy_layers` does.
    """
    return f"sha256:{hashlib.sha256(_manifest(image, pull_secret)).hexdigest()}"


def copy_layers(image: str, pull_secret: str, folder: Path) -> list[Path]:
    """Copy the image, named by its digest, into `folder`; its layers as plain tar files, lowest first.

    Raises CredentialsError, DataError or UsageError as the registry refuses the image,
    TransientError where it does not answer, ConfigError where skopeo is missing or set up wrongly,
    VolumeError where the folder's volume has less room than the layers and the model take.
    """
    try:
        manifest = json.loads(_manifest(image, pull_secret))
        if "manifests" in manifest:
            image = f"{image.rpartition('@')[0]}@{_chosen(manifest['manifests'])}"
            manifest = json.loads(_manifest(image, pull_secret))
        told = sum(layer["size"] for layer in manifest["layers"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(
            f"oci://{image}: its manifest is none of an image with layers ({error!r}); give the name "
            "of an image that holds a model"
        ) from error
    free = shutil.disk_usage(folder).free
    if 2 * told > free:  # the layers lie beside what becomes of them until that is whole
        raise VolumeError(
            f"{folder}: the layers of oci://{image} take {size(told)}, and the model as much "
            f"again, and the volume has {size(free)} left: free or enlarge the volume, then run the "
            "same command"
        )
    fetched, plain = folder / "fetched", folder / "plain"
    for each in (fetched, plain):
        each.mkdir()
    problem = f"its layers are larger than the {size(told)} that its manifest tells; refused"
    _run(
        "copy",
        image,
        pull_secret,
        f"docker://{image}",
        f"dir:{fetched}",
        watch=partial(_refuse_over, told + _LARGEST_CONFIG, fetched, f"oci://{image}: {problem}"),
    )
    layers = _layers(fetched)
    if all(map(_is_tar, layers)):
        return layers
    _unpack(image, fetched, plain, sum(layer.stat().st_size for layer in layers))
    shutil.rmtree(fetched)
    return _layers(plain)


def _unpack(image: str, fetched: Path, plain: Path, compressed: int) -> None:
    """Take the layers out of whatever compresses them (zstd too), which the `dir` transport can."""
    most = _MOST_TIMES * compressed + _MOST_BESIDE
    problem = (
        f"oci://{image}: its layers, {size(compressed)} as they came, unpack to more than {size(most)}, "
        "as no model's do; refused"
    )
    # Whatever policy there is has let the image in; it may not know of folders.
    options = ("--insecure-policy", "--dest-decompress")
    try:
        _run(
            "copy",
            image,
            "",
            *options,
            f"dir:{fetched}",
            f"dir:{plain}",
            watch=partial(_refuse_over, most, plain, problem),
        )
    except TransientError as error:  # no registry has part in it
        raise DataError(f"{error}: a layer cannot be unpacked; push the image anew") from error


def _layers(folder: Path) -> list[Path]:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return [folder / layer["digest"].partition(":")[2] for layer in manifest["layers"]]


def _is_tar(layer: Path) -> bool:
    with layer.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def _manifest(image: str, pull_secret: str) -> bytes:
    return _run("inspect", image, pull_secret, "--raw", f"docker://{image}", timeout="2m")


def _chosen(images: list[dict[str, Any]]) -> str:
    """The digest of an image of an index: a model is the same on every platform, one is preferred."""
    platforms = [image.get("platform", {}).get("architecture") for image in images]
    # Attestations stand in an index as images of the architecture `unknown`.
    known = [number for number, name in enumerate(platforms) if name != "unknown"]
    preferred = [number for number in known if platforms[number] == _ARCHITECTURE]
    digest: str = images[(preferred or known or [0])[0]]["digest"]
    return digest


def _refuse_over(most: int, folder: Path, problem: str) -> None:
    """Raise DataError where more than so many bytes have come into the folder."""
    found = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # skopeo renames what is whole
            found += entry.stat().st_size
    if found > most:
        raise DataError(problem)


def _run(
    command: str,
    image: str,
    pull_secret: str,
    *arguments: str,
    timeout: str = "0",
    watch: Callable[[], None] = lambda: None,
) -> bytes:
    """Standard output of a skopeo command on an image; a timeout of 0 is none.

    What `watch` raises while the command works ends it.
    """
    with _auth_file(pull_secret) as (options, handles):
        line = ["skopeo", "--command-timeout", timeout, command, "--retry-times", "3"]
        try:
            done = _watched([*line, *options, *arguments], handles, watch)
        except FileNotFoundError as error:
            raise ConfigError(
                "skopeo is not installed, which copies oci:// models; install it (apt-get install "
                "skopeo, dnf install skopeo, brew install skopeo) or use the train image"
            ) from error
    if done.returncode:
        raise _error(f"oci://{image}", done.stderr.decode(errors="replace"))
    return done.stdout


def _watched(
    words: list[str], handles: Sequence[int], watch: Callable[[], None]
) -> "subprocess.CompletedProcess[bytes]":
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=handles,
        # A step that is killed must not leave a copy going on.
        preexec_fn=partial(end_with_parent, os.getpid()),
    ) as process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, told = process.communicate(timeout=_LOOKS_EVERY)
                    break
                watch()
            watch()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, told)


def _error(image: str, told: str) -> StepError:
    problem = _message(told)
    # A name and a digest are anything, and digests have numbers in them.
    words = problem.replace(image.removeprefix("oci://"), "")
    for pattern, kind, advice in _FAILURES:
        if re.search(pattern, words, re.IGNORECASE):
            return kind(f"{image}: {problem}; {advice}")
    return TransientError(f"{image}: {problem}; the registry may answer later")


def _message(told: str) -> str:
    """The words of skopeo's last line: `time="..." level=fatal msg="..."`."""
    last = told.strip().splitlines()[-1] if told.strip() else "skopeo failed without a word"
    found = re.search(r'msg="((?:[^"\\]|\\.)*)"', last)
    return found[1].replace('\\"', '"') if found else last


@contextlib.contextmanager
def _auth_file(pull_secret: str) -> Iterator[tuple[list[str], list[int]]]:
    """Options that have skopeo read the secret, from a file that only this user can read.

    On Linux it has no name, so that it goes with the processes that hold it, however they end; these
    are handed its descriptor.
    """
    if not pull_secret:
        yield [], []
        return
    _hide(_docker_config(pull_secret))
    if sys.platform == "linux":
        with tempfile.TemporaryFile(prefix="sft-") as file:
            file.write(pull_secret.encode())
            file.flush()
            yield ["--authfile", f"/proc/self/fd/{file.fileno()}"], [file.fileno()]
        return
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        path = Path(folder, "auth.json")
        path.touch(mode=0o600)
        path.write_text(pull_secret)
        yield ["--authfile", str(path)], []


def _docker_config(pull_secret: str) -> dict[str, Any]:
    try:
        config = json.loads(pull_secret)
    except ValueError:
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("auths"), dict):
        # Without the cause: it would quote the value.
        raise ConfigError(
            f"{_SECRET}: not the content of a Docker config.json, which looks like "
            '{"auths": {"registry.example.com": {"auth": "..."}}}'
        ) from None
    return config


def _hide(config: dict[str, Any]) -> None:
    for entry in config["auths"].values():
        for value in entry.values() if isinstance(entry, dict) else ():
            logs.hide(str(value))
