"""Base models: where they come from, what they must have, and what goes wrong."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steps import base_model, files
from steps.entrypoint import Run
from steps.errors import ConfigError, DataError, UsageError
from steps.params import Bound
from tests.servers.hub import STRANGER, Hub

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CONFIG = json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})
TOKEN = "hf_token-of-somebody"


def make_model(folder: Path, **changed: str | None) -> Path:
    """A folder that looks like a model: small files, and a few bytes in place of weights.

    A change replaces a file (its dots written as `__`), or removes it.
    """
    content: dict[str, str | None] = {
        "config.json": CONFIG,
        "model.safetensors": "the weights",
        "tokenizer.json": "{}",
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}),
    }
    content |= {name.replace("__", "."): text for name, text in changed.items()}
    for name, text in content.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    for name in ("open", "gated"):
        make_model(tmp_path / "hub" / "models" / "acme" / name)
    with Hub(tmp_path / "hub", token=TOKEN, gated=frozenset({"acme/gated"})) as hub:
        yield hub


Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """Run a step that only fetches a base model, by its command."""

    def run(
        model: str, *arguments: str, workspace: str = "run", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.toy.fetch", f"--model={model}"]
        command += [f"--workspace={tmp_path / workspace}", f"--cache={tmp_path / 'cache'}"]
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
        )

    return run


def recorded(workspace: Path) -> Any:
    return json.loads((workspace / "fetch.json").read_text())["inputs"]["base_model"]


def local(tmp_path: Path, **bound: Any) -> Run:
    return Run(Bound(workspace=tmp_path / "run", cache=tmp_path / "cache", **bound))


def resolve(uri: str, run: Run) -> base_model.ModelSource:
    return base_model.resolve(uri, run, hf_token="")


def test_a_hub_model_is_fetched_once_at_its_commit(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    done = fetch("acme/open")
    assert done.returncode == 0, done.stderr
    commit = hub.commit("acme/open").sha
    asset = recorded(tmp_path / "run")
    assert asset["uri"] == "acme/open"
    assert asset["revision"] == commit
    assert asset["path"] == f"../cache/hub/models--acme--open/snapshots/{commit}"
    found = (tmp_path / "run" / asset["path"]).resolve()
    original = tmp_path / "hub" / "models" / "acme" / "open"
    assert files.digest(found) == files.digest(original)

    hub.requests.clear()
    assert fetch("acme/open", workspace="other").returncode == 0
    assert hub.requests == ["GET /api/models/acme/open?blobs=true"]


def test_a_run_goes_on_with_its_commit_without_the_hub(
    fetch: Fetch, hub: Hub, tmp_path: Path
) -> None:
    fetch("acme/open")
    first = recorded(tmp_path / "run")
    (tmp_path / "hub" / "models" / "acme" / "open" / "config.json").write_text(CONFIG + " ")
    hub.requests.clear()
    again = fetch("acme/open", HF_HUB_OFFLINE="1")
    assert "already done" in again.stderr
    assert hub.requests == []
    fetch("acme/open", workspace="other")
    assert recorded(tmp_path / "other")["revision"] == hub.commit("acme/open").sha
    assert recorded(tmp_path / "other")["revision"] != first["revision"]


def test_a_revision_can_be_named(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    older = make_model(tmp_path / "hub/models/acme/open@v1", model__safetensors="older weights")
    assert fetch("hf://acme/open@v1").returncode == 0
    asset = recorded(tmp_path / "run")
    assert asset["revision"] == hub.commit("acme/open", "v1").sha
    assert files.digest((tmp_path / "run" / asset["path"]).resolve()) == files.digest(older)


def test_of_a_hub_model_only_what_transformers_loads_is_fetched(
    fetch: Fetch, hub: Hub, tmp_path: Path
) -> None:
    other = {"pytorch_model.bin", "model.gguf", "consolidated.safetensors", "consolidated.00.pth"}
    other |= {"original/model.safetensors", "onnx/model.onnx", "flax_model.msgpack"}
    repository = tmp_path / "hub" / "models" / "acme" / "open"
    make_model(repository, **dict.fromkeys(other, "other weights"))
    assert fetch("acme/open").returncode == 0
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/**/*")}
    assert fetched == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_pickled_weights_are_fetched_where_there_are_no_others(
    fetch: Fetch, tmp_path: Path
) -> None:
    make_model(tmp_path / "hub/models/acme/old", model__safetensors=None, pytorch_model__bin="old")
    assert fetch("acme/old").returncode == 0
    assert (tmp_path / "run" / recorded(tmp_path / "run")["path"] / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_wrong_bytes_from_the_hub_are_refused_and_removed(
    fetch: Fetch, hub: Hub, name: str
) -> None:
    hub.corrupt(name)
    refused = fetch("acme/open")
    assert refused.returncode == 65
    assert f"acme/open: {name} came with wrong bytes" in refused.stderr
    hub.corrupted.clear()
    assert fetch("acme/open").returncode == 0


def test_the_check_of_a_hub_model_fetches_no_weights(
    fetch: Fetch, hub: Hub, tmp_path: Path
) -> None:
    checked = fetch("acme/open", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "examined ['config.json', 'tokenizer.json', 'tokenizer_config.json']" in checked.stderr
    assert not any("safetensors" in request for request in hub.requests)
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.json")), "the check leaves nothing in the cache"


def test_the_check_of_a_hub_model_names_what_it_lacks(fetch: Fetch, tmp_path: Path) -> None:
    make_model(tmp_path / "hub/models/acme/data", model__safetensors=None, tokenizer__json=None)
    refused = fetch("acme/data", "--check")
    assert refused.returncode == 65
    assert "acme/data: not a whole model, for it has no tokenizer" in refused.stderr
    assert "no weights" in refused.stderr


@pytest.mark.parametrize("token", ["", STRANGER])
def test_a_gated_model_asks_for_the_licence_and_the_secret(fetch: Fetch, token: str) -> None:
    refused = fetch("acme/gated", "--check", HF_TOKEN=token)
    assert refused.returncode == 77
    assert "acme/gated: gated: accept its licence" in refused.stderr
    assert "the secret hf-token (key HF_TOKEN)" in refused.stderr
    assert STRANGER not in refused.stderr


def test_a_gated_model_is_fetched_with_a_token_that_is_shown_nowhere(
    fetch: Fetch, tmp_path: Path
) -> None:
    done = fetch("acme/gated", "--verbosity=DEBUG", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert TOKEN not in done.stderr
    assert not any(TOKEN.encode() in content for content in written)


def test_a_token_with_a_line_break_is_refused_and_not_shown(fetch: Fetch) -> None:
    refused = fetch("acme/gated", HF_TOKEN="hf_s3\ncret")
    assert refused.returncode == 77
    assert "the secret hf-token (key HF_TOKEN): blanks, line breaks" in refused.stderr
    assert "hf_s3" not in refused.stderr


@pytest.mark.parametrize(
    ("model", "token", "code", "told"),
    [
        ("acme/nothing", "", 77, "no such model on the hub, or it is private or gated"),
        ("acme/nothing", TOKEN, 65, "there is no such model on the hub, or it is hidden"),
        ("acme/open@v9", "", 65, "there is no revision 'v9'"),
        ("acme/open", "hf_expired-token", 77, "the hub refuses the token (401)"),
        ("acme/a/b", "", 64, "neither an existing path nor a Hugging Face ID"),
        ("acme / open", "", 64, "neither an existing path nor a Hugging Face ID"),
        ("ftp://acme/open", "", 64, "no models come by ftp://"),
        ("/nowhere/at/all", "", 65, "/nowhere/at/all: not there"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_with_its_exit_code(
    fetch: Fetch, model: str, token: str, code: int, told: str
) -> None:
    refused = fetch(model, HF_TOKEN=token)
    assert refused.returncode == code
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(
    fetch: Fetch, hub: Hub, status: int
) -> None:
    hub.fail(status, 2)
    assert fetch("acme/open", "--check").returncode == 0


def test_a_hub_that_stays_down_is_a_failure_that_may_pass(fetch: Fetch, hub: Hub) -> None:
    hub.fail(503, 1000)
    failed = fetch("acme/open")
    assert failed.returncode == 75
    assert "acme/open: the hub answers 503, 6 times in a row" in failed.stderr


def test_a_hub_that_cannot_be_reached_is_a_failure_that_may_pass(fetch: Fetch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        failed = fetch("acme/open", HF_ENDPOINT=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert failed.returncode == 75
    assert "Traceback" not in failed.stderr


def test_offline_a_model_that_is_not_here_is_a_matter_of_configuration(fetch: Fetch) -> None:
    failed = fetch("acme/open", HF_HUB_OFFLINE="1")
    assert failed.returncode == 78
    assert "HF_HUB_OFFLINE" in failed.stderr


def test_offline_a_commit_that_was_fetched_before_is_used(
    fetch: Fetch, hub: Hub, tmp_path: Path
) -> None:
    model = f"acme/open@{hub.commit('acme/open').sha}"
    assert fetch(model).returncode == 0
    checked = fetch(model, "--check", HF_HUB_OFFLINE="1")
    assert checked.returncode == 0, checked.stderr
    assert fetch(model, workspace="other", HF_HUB_OFFLINE="1").returncode == 0


def test_a_folder_is_recorded_by_its_digest(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "somewhere" / "model")
    run = local(tmp_path)
    asset = resolve(str(folder), run).asset(run.workspace)
    assert asset.path == asset.uri == str(folder)
    assert asset.sha256 == files.digest(folder)
    assert asset.revision is None


def test_a_folder_in_the_workspace_is_recorded_relative_to_it(tmp_path: Path) -> None:
    run = local(tmp_path)
    folder = make_model(run.workspace.root / "base")
    assert resolve(str(folder), run).asset(run.workspace).path == "base"


def test_a_relative_path_wins_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "acme" / "open")
    monkeypatch.chdir(tmp_path)
    assert resolve("acme/open", local(tmp_path)).path == folder


SHARDED = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"config.json": None}, "has no config.json; name"),
        ({"tokenizer.json": None}, "has no tokenizer (tokenizer.json or tokenizer.model)"),
        ({"model.safetensors": None}, "has no weights (model.safetensors or"),
        ({"config.json": None, "adapter_config.json": "{}"}, "it is an adapter: merge it"),
        ({"config.json": "{"}, "config.json is not JSON"),
        ({"config.json": "[]"}, "config.json holds no JSON object"),
        ({"config.json": '{"architectures": ["BertForMaskedLM"]}'}, "says BertForMaskedLM under"),
        ({"config.json": "{}"}, "says nothing under architectures"),
        (
            {"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0"},
            "a Git LFS pointer, not the file; run `git lfs pull` there",
        ),
        (
            {
                "model.safetensors": None,
                "model.safetensors.index.json": SHARDED,
                "model-1.safetensors": "first",
            },
            "has no model-2.safetensors (named in model.safetensors.index.json)",
        ),
    ],
)
def test_a_folder_that_is_no_base_model_is_told_what_it_lacks(
    tmp_path: Path, changed: dict[str, str | None], told: str
) -> None:
    folder = make_model(tmp_path / "model", **changed)
    with pytest.raises(DataError) as refused:
        base_model.check(str(folder), local(tmp_path), hf_token="")
    assert str(folder) in str(refused.value)
    assert told in str(refused.value)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("weights")
    with pytest.raises(DataError, match="a file, not a folder"):
        resolve(str(path), local(tmp_path))


def test_the_home_of_no_user_is_told_as_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"~nobody-here/model: not there"):
        resolve("~nobody-here/model", local(tmp_path))


def test_a_model_on_a_mounted_claim_is_found(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "claims" / "models" / "acme" / "tiny")
    run = local(tmp_path, claims=tmp_path / "claims")
    found = resolve("pvc://models/acme/tiny", run)
    assert found.path == folder
    assert found.asset(run.workspace).uri == "pvc://models/acme/tiny"


def test_a_model_on_the_volume_of_the_run_is_found(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "volume" / "base")
    bound = Bound(
        workspace=tmp_path / "volume" / "runs" / "one",
        volume_claim="sft-runs",
        volume_path="runs/one",
        claims=tmp_path / "claims",
    )
    assert resolve("pvc://sft-runs/base", Run(bound)).path == folder


@pytest.mark.parametrize(
    ("uri", "error", "told"),
    [
        ("pvc://other/base", UsageError, r"'other' is not mounted .*: models, sft\)"),
        ("pvc://models/../sft/base", UsageError, r"'\.\.'"),
        ("pvc://../models", UsageError, "not an address on a claim"),
        ("pvc:///base", UsageError, "not an address on a claim"),
        ("pvc://models/nothing", DataError, "there is no"),
        ("pvc://models/away", DataError, "a link leads out of the claim"),
        ("pvc://models/linked", DataError, r"leads out of the claim: .*linked/model\.safetensors"),
    ],
)
def test_nothing_outside_a_mounted_claim_is_reached(
    tmp_path: Path, uri: str, error: type[Exception], told: str
) -> None:
    claims, outside = tmp_path / "claims", make_model(tmp_path / "outside")
    make_model(claims / "sft" / "base")
    linked = make_model(claims / "models" / "linked", model__safetensors=None)
    (linked / "model.safetensors").symlink_to(outside / "model.safetensors")
    (claims / "models" / "away").symlink_to(outside)
    with pytest.raises(error, match=told):
        resolve(uri, local(tmp_path, claims=claims))


def test_an_oci_model_without_skopeo_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="skopeo is not installed"):
        resolve("oci://registry.example.com/acme/tiny:1", local(tmp_path))
