"""The register step against a registry on loopback: what is sent, when nothing is, and its errors."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from steps.entrypoint import Run
from steps.errors import ConfigError, CredentialsError, DataError, TransientError, UsageError
from steps.params import Bound
from steps.record import Asset, Record
from steps.register.__main__ import check, inputs, main
from steps.register.address import address
from steps.register.params import RegisterParams
from steps.register.registry import connect, patiently
from steps.workspace import Workspace
from tests.servers.model_registry import ModelRegistryServer
from tests.servers.tls import self_signed

TOKEN = "a-token-nobody-may-see"
BASE = Asset(uri="hf://acme/base", revision="b" * 40, path="../cache/hub/base")


def write_record(workspace: Workspace, step: str, **fields: Any) -> None:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "step": step,
        "status": "done",
        "fingerprint": step,
        "started": now,
        "finished": now,
        "seconds": 0.1,
        "parameters": {},
        "inputs": {},
        "outputs": {},
        "metrics": {},
        "versions": {},
    }
    Record.model_validate(values | fields).write(workspace)


def make_run(folder: Path, *, weights: str = "weights", loss: float = 1.25, **bound: Any) -> Run:
    """A run whose first three steps are done."""
    run = Run(Bound(workspace=folder, **bound))
    workspace = run.workspace
    workspace.model.mkdir(parents=True, exist_ok=True)
    (workspace.model / "model.safetensors").write_text(weights)
    model = Asset.of(workspace.model, workspace)
    write_record(
        workspace,
        "dataset",
        parameters={"data_uri": "s3://bucket/chats.jsonl"},
        outputs={"train": Asset(sha256="d" * 64)},
        metrics={"rows_train": 300},
    )
    write_record(
        workspace,
        "train",
        inputs={"base_model": BASE},
        outputs={"model": model},
        metrics={"loss_last": 0.5, "tokens_trained": 5_000_000_000},
    )
    write_record(workspace, "evaluate", inputs={"model": model}, metrics={"heldout_loss": loss})
    return run


def digest(run: Run) -> str:
    return str(Asset.of(run.workspace.model, run.workspace).sha256)


def register(run: Run, where: str, **parameters: Any) -> dict[str, Any]:
    """Register the run; what registration.json then says."""
    main(RegisterParams(address=where, **parameters), run)
    written: dict[str, Any] = json.loads(run.workspace.registration.read_text())
    return written


def command(run: Run, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "steps.register",
            f"--workspace={run.workspace.root}",
            *arguments,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


@pytest.fixture(params=["v1", "v1alpha3"])
def registry(request: pytest.FixtureRequest) -> Iterator[ModelRegistryServer]:
    """A registry that speaks one API version only: each test sees both."""
    with ModelRegistryServer(apis=(request.param,)) as server:
        yield server


@pytest.fixture
def v1() -> Iterator[ModelRegistryServer]:
    with ModelRegistryServer() as server:
        yield server


def test_without_an_address_the_step_is_skipped_and_writes_down_what_it_would_register(
    run: Run, tmp_path: Path
) -> None:
    done = command(run, f"--outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    written = json.loads(run.workspace.registration.read_text())
    assert written["status"] == "skipped"
    assert written["properties"]["sft.model_sha256"] == digest(run)
    assert written["uri"] == run.workspace.model.as_uri()
    record = json.loads(run.workspace.record("register").read_text())
    assert (record["status"], record["reason"]) == ("skipped", "no registry address")
    assert (tmp_path / "out" / "status").read_text() == "skipped"
    assert "mr_openapi" not in done.stderr, "the client was imported for nothing"


def test_the_command_registers_model_version_and_artifact(
    tmp_path: Path, registry: ModelRegistryServer
) -> None:
    run = make_run(tmp_path / "run")
    done = command(
        run,
        f"--address=127.0.0.1:{registry.port}",
        "--name=dictionary",
        "--version=2.0.0",
        "--author=me",
        "--description=word by word",
        "--run-name=sft-7",
        "--run-uid=0f-uid",
        "--volume-claim=sft-runs",
        "--volume-path=runs/sft-7",
        f"--outputs={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    uri = "pvc://sft-runs/runs/sft-7/model"
    assert [model["name"] for model in registry.registered_models] == ["dictionary"]
    (version,) = registry.model_versions
    assert (version["name"], version["author"]) == ("2.0.0", "me")
    assert version["description"] == "word by word"
    properties = version["customProperties"]
    text = {name: one["string_value"] for name, one in properties.items() if "sft." in name}
    assert text == {
        "sft.run": "sft-7",
        "sft.run_uid": "0f-uid",
        "sft.pipeline_version": "0.1.0",
        "sft.model_sha256": digest(run),
        "sft.base_model": "hf://acme/base",
        "sft.base_revision": "b" * 40,
        "sft.data_uri": "s3://bucket/chats.jsonl",
        "sft.data_sha256": "d" * 64,
    }
    assert properties["rows_train"]["int_value"] == "300"
    assert properties["heldout_loss"]["double_value"] == 1.25
    # More than the registry's integers can hold.
    assert properties["tokens_trained"]["double_value"] == 5e9
    (artifact,) = registry.model_artifacts
    expected = {
        "name": "dictionary",
        "uri": uri,
        "modelFormatName": "pytorch",
        "modelFormatVersion": "1.0",
        "modelSourceKind": "argo-workflows",
        "modelSourceClass": "pipelinerun",
        "modelSourceId": "0f-uid",
        "modelSourceName": "sft-7",
        "modelVersionId": version["id"],
    }
    assert artifact | expected == artifact
    written = json.loads(run.workspace.registration.read_text())
    assert written["status"] == "registered"
    assert written["registry"] == registry.url
    assert written["ids"] == {
        "registered_model": registry.registered_models[0]["id"],
        "model_version": version["id"],
        "model_artifact": artifact["id"],
    }
    results = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    expected = {"status": "registered", "version": "2.0.0", "uri": uri, "id": version["id"]}
    assert results == expected


def test_the_same_model_again_sends_nothing(run: Run, registry: ModelRegistryServer) -> None:
    first = register(run, registry.url)
    sent = registry.writes
    again = register(run, registry.url)
    assert (first["status"], again["status"]) == ("registered", "unchanged")
    assert again["ids"] == first["ids"]
    assert registry.writes == sent


def test_another_run_with_the_same_model_leaves_the_source_of_the_version_as_it_is(
    run: Run, v1: ModelRegistryServer, tmp_path: Path
) -> None:
    first = register(run, v1.url)
    other = register(make_run(tmp_path / "other"), v1.url)
    assert (other["status"], other["uri"]) == ("unchanged", first["uri"])


def test_a_version_without_its_artifact_is_completed(
    run: Run, registry: ModelRegistryServer
) -> None:
    registry.fail("POST", "/artifacts", 400)
    with pytest.raises(ConfigError, match="400 <html>busy</html>"):
        register(run, registry.url)
    assert not registry.model_artifacts
    assert not run.workspace.registration.exists()
    assert register(run, registry.url)["status"] == "repaired"
    assert registry.model_artifacts[0]["uri"] == run.workspace.model.as_uri()
    assert register(run, registry.url)["status"] == "unchanged"


def test_an_artifact_without_an_address_is_completed(
    run: Run, registry: ModelRegistryServer
) -> None:
    register(run, registry.url)
    del registry.model_artifacts[0]["uri"]
    assert register(run, registry.url)["status"] == "repaired"
    assert registry.model_artifacts[0]["uri"] == run.workspace.model.as_uri()


def test_another_evaluation_of_the_same_model_renews_its_metrics_only(
    run: Run, registry: ModelRegistryServer
) -> None:
    register(run, registry.url, description="first")
    theirs = {"metadataType": "MetadataStringValue", "string_value": "kept"}
    registry.model_versions[0]["customProperties"]["team"] = theirs
    before = inputs(RegisterParams(), run)
    make_run(run.workspace.root, loss=0.75)
    assert inputs(RegisterParams(), run) != before, "the step would not run again"
    assert register(run, registry.url)["status"] == "repaired"
    (version,) = registry.model_versions
    assert version["customProperties"]["heldout_loss"]["double_value"] == 0.75
    assert version["customProperties"]["team"] == theirs
    assert version["description"] == "first"
    assert len(registry.model_artifacts) == 1


def test_another_format_of_the_same_model_is_renewed(run: Run, v1: ModelRegistryServer) -> None:
    register(run, v1.url)
    assert register(run, v1.url, format_name="safetensors")["status"] == "repaired"
    assert v1.model_artifacts[0]["modelFormatName"] == "safetensors"
    assert v1.model_artifacts[0]["uri"] == run.workspace.model.as_uri()


def test_another_model_under_the_version_is_refused_with_both_digests_and_the_ways_out(
    run: Run, registry: ModelRegistryServer
) -> None:
    register(run, registry.url)
    first, sent = digest(run), registry.writes
    make_run(run.workspace.root, weights="others")
    with pytest.raises(DataError) as refused:
        register(run, registry.url)
    message = str(refused.value)
    assert "sft-model 1.0.0" in message
    assert first in message
    assert digest(run) in message
    assert "phase_04_registry_man_version" in message
    assert "--on-conflict increment" in message
    assert registry.writes == sent


def test_a_version_that_somebody_else_made_is_not_touched(
    run: Run, v1: ModelRegistryServer
) -> None:
    register(run, v1.url)
    v1.model_versions[0]["customProperties"] = {}
    with pytest.raises(DataError, match="digest unknown"):
        register(run, v1.url)


def test_on_conflict_increment_takes_the_next_free_patch_version_once(
    run: Run, registry: ModelRegistryServer
) -> None:
    for weights in ("first", "second", "third", "fourth"):
        make_run(run.workspace.root, weights=weights)
        done = register(run, registry.url, version="1.0.8", on_conflict="increment")
    assert (done["status"], done["version"]) == ("registered", "1.0.11")
    versions = [version["name"] for version in registry.model_versions]
    assert versions == ["1.0.8", "1.0.9", "1.0.10", "1.0.11"]
    make_run(run.workspace.root, weights="third")
    again = register(run, registry.url, version="1.0.8", on_conflict="increment")
    assert (again["status"], again["version"]) == ("unchanged", "1.0.10")


def test_numbers_that_json_does_not_know_are_left_out(run: Run, v1: ModelRegistryServer) -> None:
    path = run.workspace.record("evaluate")
    path.write_text(path.read_text().replace("1.25", "NaN"))
    assert "heldout_loss" not in register(run, v1.url)["metrics"]


def test_a_model_given_to_evaluate_is_registered_by_its_own_address(
    tmp_path: Path, v1: ModelRegistryServer
) -> None:
    run = make_run(tmp_path / "run")
    run.workspace.record("train").unlink()
    given = Asset(uri="acme/tuned", revision="c" * 40, path="../cache/hub/tuned")
    write_record(run.workspace, "evaluate", inputs={"model": given}, metrics={"arc_easy.acc": 0.7})
    done = register(run, v1.url)
    assert done["uri"] == f"hf://acme/tuned:{'c' * 40}"
    assert done["properties"]["sft.model_revision"] == "c" * 40
    assert "sft.data_uri" not in done["properties"], "it was not made from this run's data"
    assert done["metrics"] == {"arc_easy.acc": 0.7}
    assert register(run, v1.url)["status"] == "unchanged"


def test_scores_of_another_model_are_not_registered_as_those_of_the_runs_own(
    run: Run, v1: ModelRegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    other = Asset(uri="acme/other", revision="c" * 40)
    write_record(run.workspace, "evaluate", inputs={"model": other}, metrics={"heldout_loss": 9})
    done = register(run, v1.url)
    assert done["properties"]["sft.model_sha256"] == digest(run)
    assert "heldout_loss" not in done["metrics"]
    assert "acme/other" in caplog.text


def test_without_a_model_it_says_which_step_has_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json: not there; run the train step first"):
        inputs(RegisterParams(), Run(Bound(workspace=tmp_path)))


def test_a_model_that_is_no_longer_there_is_not_registered(
    run: Run, v1: ModelRegistryServer
) -> None:
    (run.workspace.model / "model.safetensors").unlink()
    with pytest.raises(DataError, match="run the train step again"):
        register(run, v1.url)
    assert not v1.requests


@pytest.mark.parametrize("path", ["/registered_models", "/model_versions", "/artifacts"])
@pytest.mark.parametrize("done", [False, True], ids=["refused", "answer lost"])
def test_a_registry_that_fails_for_a_moment_ends_with_one_whole_registration(
    run: Run, v1: ModelRegistryServer, path: str, done: bool
) -> None:
    v1.fail("POST", path, 502, done=done)
    assert register(run, v1.url)["status"] in ("registered", "repaired", "unchanged")
    entities = (v1.registered_models, v1.model_versions, v1.model_artifacts)
    assert [len(table) for table in entities] == [1, 1, 1]
    assert register(run, v1.url)["status"] == "unchanged"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_registry_is_asked_a_few_times(v1: ModelRegistryServer, status: int) -> None:
    v1.fail("GET", "/registered_models", status, times=9)
    with pytest.raises(TransientError, match=str(status)):
        patiently(lambda: connect(address(v1.url, 80), "me").__enter__(), pauses=(0, 0))
    assert len(v1.requests) == 3


def test_a_registry_that_is_not_there_ends_the_step_with_exit_code_75(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{unused.getsockname()[1]}"
        failed = command(run, f"--address={where}")
    assert failed.returncode == 75
    assert f"{where}: the registry does not answer" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not run.workspace.registration.exists()


def test_a_step_that_is_terminated_while_it_waits_for_an_answer_ends_at_once(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "steps.register"),
                *(f"--workspace={run.workspace.root}", f"--address={where}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        ) as step:
            with silent.accept()[0]:
                step.send_signal(signal.SIGTERM)
                _, told = step.communicate()
    assert step.returncode == 143
    assert "terminated; run the same command to go on" in told
    assert "Traceback" not in told
    assert not run.workspace.record("register").exists()


def test_a_server_with_neither_api_is_told_with_what_was_tried(run: Run) -> None:
    with ModelRegistryServer(apis=()) as server, pytest.raises(ConfigError) as refused:
        register(run, server.url)
    assert "/api/model_registry/v1/registered_models" in str(refused.value)
    assert "/api/model_registry/v1alpha3/registered_models" in str(refused.value)


def test_a_redirect_is_not_followed_in_silence(run: Run, v1: ModelRegistryServer) -> None:
    v1.fail("GET", "/registered_models", 302, Location="/login?next=secret")
    with pytest.raises(ConfigError, match=rf"redirects to {v1.url};"):
        register(run, v1.url)


def test_a_page_instead_of_an_answer_is_told(run: Run, v1: ModelRegistryServer) -> None:
    v1.fail("GET", "/registered_models", 200)
    with pytest.raises(ConfigError, match="what answers there is no Model Registry"):
        register(run, v1.url)


@pytest.mark.parametrize("token", ["", "an-old-token"])
def test_a_missing_or_refused_token_names_its_secret(
    run: Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", token)
    with ModelRegistryServer(token=TOKEN) as server:
        with pytest.raises(CredentialsError, match="secret model-registry") as refused:
            register(run, server.url)
    assert "MODEL_REGISTRY_TOKEN" in str(refused.value)
    assert "an-old-token" not in str(refused.value)


def test_a_token_is_sent_where_the_address_says_http_and_is_shown_nowhere(run: Run) -> None:
    with ModelRegistryServer(token=TOKEN) as server:
        done = command(
            run, f"--address={server.url}", "--verbosity=DEBUG", MODEL_REGISTRY_TOKEN=TOKEN
        )
    assert done.returncode == 0, done.stderr
    files = [path for path in run.workspace.root.rglob("*") if path.is_file()]
    assert all(TOKEN not in text for text in [done.stderr, *(one.read_text() for one in files)])


def test_no_token_goes_over_http_that_was_not_asked_for(
    run: Run,
    v1: ModelRegistryServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service_account = tmp_path / "token"
    service_account.write_text(TOKEN)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(service_account))
    register(run, v1.url)
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", TOKEN)
    register(run, f"127.0.0.1:{v1.port}")
    assert {authorization for _, _, authorization in v1.requests} == {None}
    assert "the token is not sent" in caplog.text


@pytest.mark.parametrize("token", ["", TOKEN])
def test_tls_is_verified_by_the_given_certificate_with_and_without_a_token(
    run: Run, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, pem = self_signed(tmp_path)
    with ModelRegistryServer(tls=context, token=token) as server:
        monkeypatch.setenv("MODEL_REGISTRY_TOKEN", token)
        with pytest.raises(ConfigError, match="MODEL_REGISTRY_CA"):
            register(run, server.url)
        assert not server.requests
        monkeypatch.setenv("MODEL_REGISTRY_CA", pem)
        assert register(run, server.url)["status"] == "registered"


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("MODEL_REGISTRY_CA", "-----BEGIN NONSENSE-----", ConfigError),
        ("MODEL_REGISTRY_TOKEN", "two\nlines", CredentialsError),
    ],
)
def test_a_broken_secret_is_named(
    variable: str,
    value: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=f"secret model-registry, key {variable}"):
        address("https://registry", 8080)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("registry", "http://registry:8080"),
        ("registry.ns.svc:9090", "http://registry.ns.svc:9090"),
        ("http://registry", "http://registry:8080"),
        ("http://registry:80/", "http://registry:80"),
        ("https://registry", "https://registry:443"),
        ("https://registry:8443/behind", "https://registry:8443/behind"),
        ("http://[::1]:9090", "http://[::1]:9090"),
    ],
)
def test_scheme_and_port_of_the_address_win(text: str, url: str) -> None:
    assert address(text, 8080).url == url


@pytest.mark.parametrize(
    "text",
    ["ftp://registry", "http://", "a registry", "a:port", "http://me:pass@registry", "a?b=c"],
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_a_password(text: str) -> None:
    with pytest.raises(UsageError, match="phase_04_registry_man_address") as refused:
        address(text, 8080)
    assert "pass@" not in str(refused.value)


def test_the_check_passes_where_the_version_is_free_or_the_runs_own(
    run: Run, registry: ModelRegistryServer
) -> None:
    params = RegisterParams(address=registry.url)
    check(params, run)
    register(run, registry.url)
    check(params, run)
    check(RegisterParams(), run)
    assert len(registry.writes) == 3


def test_the_check_refuses_a_version_that_another_run_has_taken(
    run: Run, registry: ModelRegistryServer, tmp_path: Path
) -> None:
    register(run, registry.url)
    later = Run(Bound(workspace=tmp_path / "later"))
    with pytest.raises(DataError, match=r"sft-model 1\.0\.0 is taken by the run run; choose"):
        check(RegisterParams(address=registry.url), later)
    check(RegisterParams(address=registry.url, on_conflict="increment"), later)
    check(RegisterParams(address=registry.url, version="1.0.1"), later)


def test_the_check_names_a_missing_token(run: Run) -> None:
    with ModelRegistryServer(token=TOKEN) as server, pytest.raises(CredentialsError):
        check(RegisterParams(address=server.url), run)
