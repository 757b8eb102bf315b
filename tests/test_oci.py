"""Base models from a real registry, copied by the real skopeo."""

import gzip
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.registry import PASSWORD, Registry, tar
from tests.servers.tls import self_signed

pytestmark = pytest.mark.oci

TEMPLATE = "{{ messages }}"
LAYERS = [
    tar({"etc/os-release": "NAME=none"}),
    tar(
        {
            "models/config.json": '{"architectures": ["Qwen2ForCausalLM"]}',
            "models/tokenizer.json": "{}",
            "models/chat_template.jinja": TEMPLATE,
        }
    ),
    tar({"models/model.safetensors": "weights" * 1000}),
]
NOISE = "".join(random.Random(1).choices(string.printable, k=20 << 20))
"""Which hardly compresses."""
Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def fetch(registry: Registry, tmp_path: Path) -> Fetch:
    """Run a step that only fetches a base model; with the secret unless another is given."""

    def run(
        name: str, *arguments: str, workspace: str = "run", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        model = name if "://" in name else f"oci://{registry.host}/{name}"
        command = [sys.executable, "-m", "tests.toy.fetch", f"--model={model}"]
        command += [f"--workspace={tmp_path / workspace}", f"--cache={tmp_path / 'cache'}"]
        secret = {"OCI_PULL_SECRET_MODEL_DOWNLOAD": registry.pull_secret()}
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, **registry.environment, **secret, **environment},
            capture_output=True,
            text=True,
        )

    return run


def recorded(workspace: Path) -> Any:
    return json.loads((workspace / "fetch.json").read_text())["inputs"]["base_model"]


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache/oci").iterdir() if path.is_dir()]


def test_an_image_is_fetched_once_at_its_digest(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    digest = registry.push("acme/tiny:1", LAYERS)
    done = fetch("acme/tiny:1")
    assert done.returncode == 0, done.stderr
    asset = recorded(tmp_path / "run")
    assert asset["uri"] == f"oci://{registry.host}/acme/tiny:1"
    assert asset["revision"] == digest
    assert asset["path"] == f"../cache/oci/{digest.replace(':', '-')}"
    model = tmp_path / "run" / asset["path"]
    assert {path.name for path in model.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert (model / "model.safetensors").read_text() == "weights" * 1000
    first = model.stat().st_mtime_ns
    assert fetch("acme/tiny:1", workspace="other").returncode == 0
    assert model.stat().st_mtime_ns == first


def test_a_run_goes_on_with_its_image_without_the_registry(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    digest = registry.push("acme/moving:latest", LAYERS)
    fetch("acme/moving")
    registry.push("acme/moving:latest", [*LAYERS, tar({"models/more.txt": "more"})])
    again = fetch("acme/moving", PATH=str(tmp_path))
    assert "already done" in again.stderr
    fetch("acme/moving", workspace="other")
    assert recorded(tmp_path / "run")["revision"] == digest
    assert recorded(tmp_path / "other")["revision"] != digest


def test_an_image_can_be_named_by_its_digest(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    digest = registry.push("acme/pinned:1", LAYERS)
    done = fetch(f"acme/pinned@{digest}")
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path / "run")["revision"] == digest


def test_layers_compressed_by_zstd_are_read(registry: Registry, fetch: Fetch) -> None:
    layers = [tar({"etc/os-release": "NAME=zstd"}), *LAYERS]
    registry.push("acme/zstd:1", layers, "--dest-compress-format=zstd")
    done = fetch("acme/zstd:1")
    assert done.returncode == 0, done.stderr


def test_the_check_looks_into_an_image_only_where_it_is_here(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    registry.push("acme/checked:1", LAYERS)
    checked = fetch("acme/checked:1", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "examined 0" in checked.stderr
    assert list(tmp_path.iterdir()) == []
    fetch("acme/checked:1")
    assert "'chat_template.jinja', 'config.json'" in fetch("acme/checked:1", "--check").stderr


@pytest.mark.parametrize("password", ["", "wrong-password"])
def test_a_private_image_names_the_secret_it_needs(
    registry: Registry, fetch: Fetch, password: str
) -> None:
    registry.push("acme/tiny:1", LAYERS)
    secret = registry.pull_secret(password) if password else ""
    refused = fetch("acme/tiny:1", OCI_PULL_SECRET_MODEL_DOWNLOAD=secret)
    assert refused.returncode == 77
    assert "secret 'oci-pull-secret-model-download'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_secret_is_shown_nowhere_and_left_nowhere(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    registry.push("acme/tiny:1", LAYERS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = fetch("acme/tiny:1", "--verbosity=DEBUG", TMPDIR=str(scratch))
    assert done.returncode == 0
    auth = json.loads(registry.pull_secret())["auths"][registry.host]["auth"]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(word in text for text in [done.stderr, *written] for word in (PASSWORD, auth))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("secret", ["correct-horse", '["correct-horse"]', '{"auth": "correct"}'])
def test_a_secret_that_is_no_docker_config_is_told_without_its_value(
    fetch: Fetch, secret: str
) -> None:
    refused = fetch("acme/tiny:1", OCI_PULL_SECRET_MODEL_DOWNLOAD=secret)
    assert refused.returncode == 78
    assert "not the content of a Docker config.json" in refused.stderr
    assert "correct" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("acme/tiny:none", 65, "manifest unknown"),
        ("acme/nothing:1", 65, "check the repository"),
        ("oci://tiny", 64, "write oci://registry/repository:tag"),
        ("oci://registry.example.com/Acme/Tiny:1", 64, "must be lowercase"),
    ],
)
def test_an_image_that_cannot_be_had_is_told_with_its_exit_code(
    registry: Registry, fetch: Fetch, name: str, code: int, told: str
) -> None:
    registry.push("acme/tiny:1", LAYERS)
    refused = fetch(name)
    assert refused.returncode == code
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "name", ["acme/tiny:1", "acme/unauthorized:404", f"x509@sha256:{'404' * 21}0"]
)
def test_a_registry_that_does_not_answer_is_a_failure_that_may_pass(
    fetch: Fetch, name: str
) -> None:
    failed = fetch(f"oci://registry.invalid/{name}", "--check")
    assert failed.returncode == 75, failed.stderr
    assert f"oci://registry.invalid/{name}" in failed.stderr


def test_an_image_without_a_whole_model_is_not_put_into_the_cache(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    registry.push("acme/half:1", [*LAYERS, tar({"models/.wh.tokenizer.json": ""})])
    refused = fetch("acme/half:1")
    assert refused.returncode == 65
    assert "has no tokenizer" in refused.stderr
    assert cached(tmp_path) == []


def test_an_image_whose_member_escapes_is_refused(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    registry.push("acme/evil:1", [*LAYERS, tar({"models/../../../escaped.txt": "evil"})])
    refused = fetch("acme/evil:1")
    assert refused.returncode == 65
    assert "which leads out of the image; refused" in refused.stderr
    assert cached(tmp_path) == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_registry_with_a_certificate_of_its_own_is_trusted_by_its_ca(tmp_path: Path) -> None:
    _, ca = self_signed(tmp_path)
    (tmp_path / "ca.pem").write_text(ca)
    with Registry(tmp_path / "registry", certificate=tmp_path / "server.pem") as registry:
        registry.push("acme/tiny:1", LAYERS)
        command = [sys.executable, "-m", "tests.toy.fetch", f"--workspace={tmp_path / 'run'}"]
        command += [f"--model=oci://{registry.host}/acme/tiny:1"]
        secret = {"OCI_PULL_SECRET_MODEL_DOWNLOAD": registry.pull_secret()}
        environment = {**os.environ, **registry.environment, **secret}
        refused = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert refused.returncode == 78, refused.stderr
        assert "SSL_CERT_FILE" in refused.stderr
        trusting = {**environment, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        done = subprocess.run(command, env=trusting, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_of_an_index_an_image_is_taken_whatever_its_platform(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    for architecture in ("amd64", "arm64"):
        digest = registry.push("acme/index:1", LAYERS, index_for=architecture)
        done = fetch("acme/index:1", workspace=architecture)
        assert done.returncode == 0, done.stderr
        assert recorded(tmp_path / architecture)["revision"] == digest


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_layer_that_comes_damaged_is_never_used(
    registry: Registry, fetch: Fetch, tmp_path: Path, damage: str
) -> None:
    layer = tar({"models/model.safetensors": damage * 5000})
    registry.push(f"acme/{damage}:1", [*LAYERS, layer])
    blob = registry.blob(gzip.compress(layer, mtime=0))
    whole = blob.read_bytes()
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(whole[:-100] if damage == "truncated" else whole[:-1] + b"x")
    failed = fetch(f"acme/{damage}:1")
    assert failed.returncode in (65, 75), failed.stderr
    assert "Traceback" not in failed.stderr
    assert cached(tmp_path) == []
    blob.write_bytes(whole)
    done = fetch(f"acme/{damage}:1")
    assert done.returncode == 0, done.stderr


def test_layers_that_unpack_to_more_than_a_model_are_refused(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    bomb = tar({"models/zeros.safetensors": "0" * (300 << 20)})
    registry.push("acme/bomb:1", [*LAYERS, bomb])
    refused = fetch("acme/bomb:1")
    assert refused.returncode == 65, refused.stderr
    assert "as no model's do; refused" in refused.stderr
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("layer", "claimed", "problem"),
    [
        ({"models/zeros.safetensors": "0" * (300 << 20)}, 1 << 30, "unpack to more than"),
        ({"models/noise.safetensors": NOISE}, 1, "larger than the .* that its manifest tells"),
    ],
    ids=["a bomb", "more than was told"],
)
def test_sizes_that_a_manifest_lies_about_are_not_believed(
    registry: Registry,
    fetch: Fetch,
    tmp_path: Path,
    layer: dict[str, str],
    claimed: int,
    problem: str,
) -> None:
    manifest = registry.manifest(registry.push("acme/liar:1", [*LAYERS, tar(layer)]))
    manifest["layers"][-1]["size"] = claimed
    registry.put("acme/liar:1", manifest)
    refused = fetch("acme/liar:1")
    assert refused.returncode == 65, refused.stderr
    assert re.search(problem, refused.stderr), refused.stderr
    assert cached(tmp_path) == []


def test_a_policy_that_knows_registries_alone_is_kept(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    registry.push("acme/policed:1", LAYERS)
    home = tmp_path / "home"
    shutil.copytree(registry.folder / ".config", home / ".config")
    policy: dict[str, Any] = {"default": [{"type": "reject"}]}
    (home / ".config" / "containers" / "policy.json").write_text(json.dumps(policy))
    refused = fetch("acme/policed:1", HOME=str(home))
    assert refused.returncode == 78, refused.stderr
    policy["transports"] = {"docker": {registry.host: [{"type": "insecureAcceptAnything"}]}}
    (home / ".config" / "containers" / "policy.json").write_text(json.dumps(policy))
    done = fetch("acme/policed:1", HOME=str(home))
    assert done.returncode == 0, done.stderr


def test_layers_that_are_not_compressed_are_taken_as_they_are(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    manifest = registry.manifest(registry.push("acme/plain:1", LAYERS, "--preserve-digests"))
    assert {each["mediaType"] for each in manifest["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar"
    }
    done = fetch("acme/plain:1")
    assert done.returncode == 0, done.stderr
    model = tmp_path / "run" / recorded(tmp_path / "run")["path"]
    assert (model / "model.safetensors").read_text() == "weights" * 1000


def test_a_layer_that_is_no_archive_is_told_to_be_at_fault(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    # The registry gives what the manifest names: it is the archive that ends too soon.
    registry.push("acme/broken:1", [*LAYERS, gzip.compress(LAYERS[-1], mtime=0)[:-20]])
    refused = fetch("acme/broken:1")
    assert refused.returncode == 65, refused.stderr
    assert "a layer cannot be unpacked" in refused.stderr
    assert cached(tmp_path) == []


@pytest.mark.parametrize("share", [0.75, 1000])
def test_layers_that_the_volume_has_no_room_for_beside_the_model_are_not_copied(
    registry: Registry, fetch: Fetch, tmp_path: Path, share: float
) -> None:
    manifest = registry.manifest(registry.push("acme/large:1", LAYERS))
    manifest["layers"][-1]["size"] = int(shutil.disk_usage(tmp_path).free * share)
    registry.put("acme/large:1", manifest)
    refused = fetch("acme/large:1")
    assert refused.returncode == 74, refused.stderr
    assert "free or enlarge the volume" in refused.stderr
    assert cached(tmp_path) == []


def test_an_index_without_images_is_named(registry: Registry, fetch: Fetch) -> None:
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    registry.put("acme/none:1", index | {"manifests": []}, "index")
    refused = fetch("acme/none:1")
    assert refused.returncode == 65, refused.stderr
    assert "its manifest is none of an image with layers" in refused.stderr


def test_a_killed_copy_leaves_neither_the_secret_nor_a_process_and_is_begun_anew(
    registry: Registry, fetch: Fetch, tmp_path: Path
) -> None:
    digest = registry.push("acme/killed:1", LAYERS)
    scratch, bin_ = tmp_path / "scratch", tmp_path / "bin"
    for folder in (scratch, bin_):
        folder.mkdir()
    os.mkfifo(bin_ / "copying")
    real = shutil.which("skopeo")
    # Waits where the real one would be copying.
    (bin_ / "skopeo").write_text(
        f'#!/bin/sh\ncase "$*" in *" copy "*) cat $(echo "$*" | sed "s/.*--authfile \\([^ ]*\\).*/\\1/")'
        f" > {bin_}/auth; exec 9> {bin_}/copying; echo begun >&9; sleep 30 9>&-; echo lived >&9;; esac\n"
        f'exec {real} "$@"\n'
    )
    (bin_ / "skopeo").chmod(0o755)
    command = [sys.executable, "-m", "tests.toy.fetch", f"--workspace={tmp_path / 'run'}"]
    command += [f"--model=oci://{registry.host}/acme/killed:1", f"--cache={tmp_path / 'cache'}"]
    secret = {"OCI_PULL_SECRET_MODEL_DOWNLOAD": registry.pull_secret(), "TMPDIR": str(scratch)}
    path = {"PATH": f"{bin_}:{os.environ['PATH']}"}
    with subprocess.Popen(
        command, env={**os.environ, **registry.environment, **secret, **path}, stderr=-1
    ) as step:
        with (bin_ / "copying").open() as copying:
            assert copying.readline() == "begun\n"
            step.kill()
            assert copying.read() == "", "the copy went on"
        step.communicate(timeout=60)
    assert json.loads((bin_ / "auth").read_text()) == json.loads(registry.pull_secret())
    assert list(scratch.iterdir()) == []
    assert cached(tmp_path) == [f".{digest.replace(':', '-')}.partial"]
    assert fetch("acme/killed:1").returncode == 0
    assert cached(tmp_path) == [digest.replace(":", "-")]
