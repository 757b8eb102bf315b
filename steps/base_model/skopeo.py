"""Images of a registry, by skopeo: what a name means now, and a copy of its layers."""

import contextlib
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
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
from steps.train.params import PULL_SECRET

_SECRET = f"the secret {PULL_SECRET.name!r} (key {PULL_SECRET.keys[0]})"

# A model has no platform; on a machine of another kind skopeo would refuse an index.
_PLATFORM = ("--override-os", "linux", "--override-arch", "amd64")

# What skopeo 1.9 to 1.20 and the registries behind it write to standard error.
_FAILURES: tuple[tuple[str, type[StepError], str], ...] = (
    (
        r"unauthorized|authentication required|access .* denied|denied:|401|403 \(?Forbidden|"
        r"invalid username/password",
        CredentialsError,
        f"have a Docker config.json that may read it in {_SECRET}, and check the name",
    ),
    (
        r"manifest unknown|name unknown|not found|404",
        DataError,
        "check the repository and the tag or digest",
    ),
    (r"invalid reference|must be lowercase", UsageError, "write oci://registry/repository:tag"),
    (r"no space left|read-only file system", VolumeError, "free or enlarge the volume"),
    (
        r"x509|server gave HTTP response",
        ConfigError,
        "give skopeo the registry's CA, see containers-certs.d(5) and containers-registries.conf(5)",
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
    answer = _run("inspect", pull_secret, "--raw", f"docker://{image}", timeout="2m")
    return f"sha256:{hashlib.sha256(answer).hexdigest()}"


def copy_layers(image: str, pull_secret: str, folder: Path) -> list[Path]:
    """Copy the image into `folder`; its layers as plain tar files, the lowest first.

    Raises CredentialsError, DataError or UsageError as the registry refuses the image,
    TransientError where it does not answer, ConfigError where skopeo is missing or set up wrongly.
    """
    # The `dir` transport takes apart every compression (zstd too) and keeps what is uncompressed.
    _run("copy", pull_secret, "--dest-decompress", f"docker://{image}", f"dir:{folder}")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return [folder / layer["digest"].partition(":")[2] for layer in manifest["layers"]]


def _run(command: str, pull_secret: str, *arguments: str, timeout: str = "0") -> bytes:
    """Standard output of a skopeo command on an image; a timeout of 0 is none."""
    with _auth_file(pull_secret) as options:
        line = ["skopeo", *_PLATFORM, "--command-timeout", timeout, command, "--retry-times", "3"]
        try:
            done = subprocess.run([*line, *options, *arguments], capture_output=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError(
                "skopeo is not installed, which copies oci:// models; install it (apt-get install "
                "skopeo, dnf install skopeo, brew install skopeo) or use the train image"
            ) from error
    if done.returncode:
        image = next(argument for argument in arguments if argument.startswith("docker://"))
        told = done.stderr.decode(errors="replace")
        raise _error(image.replace("docker://", "oci://"), told)
    return done.stdout


def _error(image: str, told: str) -> StepError:
    problem = _message(told)
    for pattern, kind, advice in _FAILURES:
        if re.search(pattern, problem, re.IGNORECASE):
            return kind(f"{image}: {problem}; {advice}")
    return TransientError(f"{image}: {problem}; the registry may answer later")


def _message(told: str) -> str:
    """The words of skopeo's last line: `time="..." level=fatal msg="..."`."""
    last = told.strip().splitlines()[-1] if told.strip() else "skopeo failed without a word"
    found = re.search(r'msg="((?:[^"\\]|\\.)*)"', last)
    return found[1].replace('\\"', '"') if found else last


@contextlib.contextmanager
def _auth_file(pull_secret: str) -> Iterator[list[str]]:
    """Options that have skopeo read the secret, from a file that only this user can read."""
    if not pull_secret:
        yield []
        return
    _hide(_docker_config(pull_secret))
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        path = Path(folder, "auth.json")
        path.touch(mode=0o600)
        path.write_text(pull_secret)
        yield ["--authfile", str(path)]


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
