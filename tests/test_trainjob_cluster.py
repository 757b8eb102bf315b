"""The way to a cluster, and what is found there: credentials, refusals, runtimes, shapes, owners."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from steps.entrypoint import Run
from steps.errors import (
    ConfigError,
    CredentialsError,
    ExistsError,
    ForbiddenError,
    NotServedError,
    NotThereError,
    StepError,
    TooLargeError,
    TransientError,
)
from steps.params import Bound
from steps.train.params import TrainParams
from steps.train.trainjob import runtimes
from steps.train.trainjob.cluster import TIMEOUT, Cluster, connect
from steps.train.trainjob.manifest import GROUP, PLURAL, VERSION, Api, Runtime, render
from tests import argo_schemas
from tests.cluster_settings import cluster as settings
from tests.conftest import ROOT
from tests.servers.kubernetes import Kind, KubernetesServer, Object
from tests.servers.tls import self_signed
from tests.test_trainjob_object import job_of, run_in
from workflows.training_runtime import runtime

TOKEN = "a-token"
CRD = f"{PLURAL}.{GROUP}"
FIELDS = {"v2.0": "podSpecOverrides", "v2.1": "podTemplateOverrides", "v2.2": "runtimePatches"}


def schema_of(version: str) -> Object:
    """Of the definition of TrainJobs, what tells one version from another."""
    known: Object = {name: {} for name in ("runtimeRef", "trainer", FIELDS[version])}
    known |= {"labels": {}, "annotations": {}} if version != "v2.2" else {}
    spec = {"type": "object", "properties": known}
    return {"type": "object", "properties": {"spec": spec}}


def kinds(schema: Object) -> tuple[Kind, ...]:
    return (
        Kind(GROUP, VERSION, PLURAL, "TrainJob", schema=schema),
        Kind(GROUP, VERSION, "trainingruntimes", "TrainingRuntime"),
        Kind(GROUP, VERSION, "clustertrainingruntimes", "ClusterTrainingRuntime", namespaced=False),
        Kind(
            *("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
            *("CustomResourceDefinition", False),
        ),
        Kind("", "v1", "pods", "Pod"),
    )


def with_definition(server: KubernetesServer, schema: Object) -> None:
    version = {"name": VERSION, "schema": {"openAPIV3Schema": schema}}
    server.create(
        "customresourcedefinitions", {"metadata": {"name": CRD}, "spec": {"versions": [version]}}
    )


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    """A cluster with Trainer 2.2."""
    with KubernetesServer(kinds(schema_of("v2.2")), token=TOKEN) as server:
        with_definition(server, schema_of("v2.2"))
        yield server


def reach(server: KubernetesServer, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> Cluster:
    monkeypatch.setenv("KUBERNETES_SERVER_URL", f"{server.url}/")
    monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", f" {token}\n")
    return connect(TrainParams(), "default")


def trainjobs(cluster: Cluster) -> Any:
    return client.CustomObjectsApi(cluster.api).list_namespaced_custom_object(
        GROUP, VERSION, cluster.namespace, PLURAL, _request_timeout=TIMEOUT
    )


# Credentials


def test_the_secrets_two_keys_lead_to_the_cluster(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    assert trainjobs(cluster)["items"] == []
    assert cluster.namespace == "default"
    assert cluster.api.user_agent.startswith("sft-pipeline/")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "KUBERNETES_SERVER_URL and KUBERNETES_AUTH_TOKEN"),
        ({"KUBERNETES_SERVER_URL": "https://api:6443"}, "KUBERNETES_AUTH_TOKEN"),
        (
            {"KUBERNETES_SERVER_URL": "  ", "KUBERNETES_AUTH_TOKEN": TOKEN},
            "KUBERNETES_SERVER_URL",
        ),
    ],
)
def test_a_missing_or_half_filled_secret_is_named_with_the_key_and_the_alternative(
    given: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("KUBERNETES_SERVER_URL", "KUBERNETES_AUTH_TOKEN"):
        monkeypatch.delenv(key, raising=False)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    told = f"secret 'kubernetes-credentials': {missing} missing or empty.*--cluster-auth service-account"
    with pytest.raises(ConfigError, match=told):
        connect(TrainParams(), "default")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://api.example.com:6443", "http:// would send the token in the clear"),
        ("api.example.com:6443", "write the address as https://host:port"),
        ("https://user:word@api.example.com", "write the address as https://host:port"),
        ("https://[::1", "no address"),
    ],
)
def test_an_address_that_would_give_the_token_away_is_refused(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVER_URL", url)
    monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match=f"KUBERNETES_SERVER_URL: {told}") as refused:
        connect(TrainParams(), "default")
    assert TOKEN not in str(refused.value)


def test_a_token_with_something_else_in_it_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVER_URL", "https://api.example.com")
    monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", "two words")
    with pytest.raises(ConfigError, match="key KUBERNETES_AUTH_TOKEN: no token") as refused:
        connect(TrainParams(), "default")
    assert "two words" not in str(refused.value)


def test_without_a_namespace_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVER_URL", "https://api.example.com")
    monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match="--namespace is not given"):
        connect(TrainParams())


def test_outside_a_pod_the_service_account_is_refused_with_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"no pod .*--cluster-auth secret.*kubeconfig"):
        connect(TrainParams(cluster_auth="service-account"), "default")


def kubeconfig(folder: Path, server: str, **context: str) -> Path:
    path = folder / "kubeconfig"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **context}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_kubeconfig_leads_to_the_namespace_of_its_context(
    server: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url, namespace="team-a")))
    params = TrainParams(cluster_auth="kubeconfig")
    assert connect(params).namespace == "team-a"
    assert connect(params, "default").namespace == "default"
    assert trainjobs(connect(params, "default"))["items"] == []


def test_a_kubeconfig_that_does_not_verify_the_server_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path, "https://api.example.com")
    content = yaml.safe_load(path.read_text())
    content["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigError, match="context here: insecure-skip-tls-verify"):
        connect(TrainParams(cluster_auth="kubeconfig"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no way to a cluster"):
        connect(TrainParams(cluster_auth="kubeconfig"))


def test_tls_is_verified_against_the_bundle_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, pem = self_signed(tmp_path)
    with KubernetesServer(kinds({}), token=TOKEN, tls=tls) as server:
        cluster = reach(server, monkeypatch)
        with pytest.raises(ConfigError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
            with cluster.errors("list TrainJobs"):
                trainjobs(cluster)
        assert server.requests == []
        (tmp_path / "ca.crt").write_text(pem)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
        assert trainjobs(reach(server, monkeypatch))["items"] == []


# Refusals


PAGE, OTHER = "<html>out of order</html>", '{"error": "no upstream"}'
STATUS = '{"kind": "Status", "message": "no"}'


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (408, STATUS, TransientError, r"for now \(408\)"),
        (429, PAGE, TransientError, r"for now \(429\)"),
        (500, STATUS, TransientError, r"for now \(500\)"),
        (503, PAGE, TransientError, r"for now \(503\)"),
        (0, "", TransientError, "no answer"),
        (
            302,
            PAGE,
            TransientError,
            r"for now \(302\): that was no answer of Kubernetes: '<html>out",
        ),
        (400, PAGE, TransientError, "check the address, and what stands between"),
        (403, PAGE, TransientError, r"\(403\): that was no answer of Kubernetes"),
        (404, OTHER, TransientError, r"\(404\): that was no answer of Kubernetes"),
        (400, STATUS, ConfigError, r"\(400\): no"),
        (422, STATUS, ConfigError, r"\(422\): no"),
        (403, STATUS, ForbiddenError, r"lacks the right: .*no"),
        (404, "404 page not found\n", NotServedError, "install Kubeflow Trainer"),
        (413, PAGE, TooLargeError, r"too large \(413\)"),
        (
            401,
            PAGE,
            CredentialsError,
            "renew KUBERNETES_AUTH_TOKEN of the secret 'kubernetes-credentials'",
        ),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_its_kind(
    status: int,
    body: str,
    kind: type[StepError],
    told: str,
    server: KubernetesServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = reach(server, monkeypatch)
    server.fail("GET", PLURAL, status, body=body)
    with pytest.raises(kind, match=f"{server.url}: failed to list TrainJobs.*{told}") as raised:
        with cluster.errors("list TrainJobs"):
            trainjobs(cluster)
    assert type(raised.value) is kind
    assert server.asked("GET", PLURAL) == 1  # who asks decides what may be asked twice


def test_what_is_not_there_and_what_is_there_already_are_told_apart(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    api = client.CustomObjectsApi(cluster.api)
    place = (GROUP, VERSION, "default", PLURAL)
    with pytest.raises(NotThereError, match=r"failed to get TrainJob one: .*not found"):
        with cluster.errors("get TrainJob one"):
            api.get_namespaced_custom_object(*place, "one")
    body = {"metadata": {"name": "one"}}
    api.create_namespaced_custom_object(*place, body)
    with pytest.raises(ExistsError, match="already exists"), cluster.errors("create TrainJob one"):
        api.create_namespaced_custom_object(*place, body)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('pods is forbidden: User "u" cannot list resource "pods"', ForbiddenError),
        ("trainjobs is forbidden: exceeded quota: gpus, requested: 8", TransientError),
        ('admission webhook "policy" denied the request: no', ConfigError),
    ],
)
def test_a_refusal_is_not_always_one_of_rights(words: str, kind: type[StepError]) -> None:
    cluster = Cluster(client.ApiClient(), "default", where="here", credential="the token")
    body = json.dumps({"kind": "Status", "message": words})
    with pytest.raises(kind) as raised, cluster.errors("create a TrainJob"):
        error = client.ApiException(status=403)
        error.body = body
        raise error
    assert type(raised.value) is kind
    assert words in str(raised.value)


# Runtimes


def a_runtime(name: str, **spec: Any) -> Object:
    made: Object = runtime(settings())
    made["metadata"]["name"] = name
    made["spec"] |= spec
    return made


def find(cluster: Cluster, name: str = "training-hub") -> Runtime:
    return runtimes.find(cluster, TrainParams(runtime=name))


def test_a_runtime_is_looked_for_in_the_cluster_and_then_in_the_namespace(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    server.create("trainingruntimes", a_runtime("training-hub"))
    assert find(cluster) == Runtime(kind="TrainingRuntime", name="training-hub")
    server.create("clustertrainingruntimes", a_runtime("training-hub"), "")
    assert find(cluster) == Runtime(kind="ClusterTrainingRuntime", name="training-hub")


def test_a_missing_runtime_is_told_with_those_that_are_there(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    with pytest.raises(ConfigError, match="there are: none; name one by --runtime"):
        find(cluster)
    server.create("clustertrainingruntimes", a_runtime("torch-distributed"), "")
    server.create("trainingruntimes", a_runtime("ours"))
    told = "no runtime 'mine' .*ClusterTrainingRuntime torch-distributed, TrainingRuntime ours"
    with pytest.raises(ConfigError, match=told):
        find(cluster, "mine")


def test_without_the_right_to_see_those_of_the_cluster_the_namespaces_serve(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = reach(server, monkeypatch)
    server.forbidden.add(("list", "clustertrainingruntimes"))
    server.create("trainingruntimes", a_runtime("training-hub"))
    assert find(cluster).kind == "TrainingRuntime"
    assert "failed to list ClusterTrainingRuntimes: not allowed (403)" in caplog.text
    told = "failed to list ClusterTrainingRuntimes: .*KUBERNETES_AUTH_TOKEN of the secret 'kubernetes-c"
    with pytest.raises(ForbiddenError, match=told):
        find(cluster, "mine")


def test_a_token_that_is_refused_names_the_secret_at_the_first_question(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch, token="expired")
    told = r"failed to list ClusterTrainingRuntimes: .*\(401\): renew KUBERNETES_AUTH_TOKEN"
    with pytest.raises(CredentialsError, match=told):
        find(cluster)


POD: Object = {"spec": {"template": {"spec": {"containers": [{"name": "other"}]}}}}
STEP = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
JOB: Object = {"template": POD | {"metadata": {"labels": STEP}}}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"mlPolicy": {"mpi": {}}}, "is made for mpi, not for torch"),
        (
            {"mlPolicy": {"torch": {"elasticPolicy": {"minNodes": 1, "maxNodes": 8}}}},
            "elasticPolicy lets the number of nodes change",
        ),
        (
            {"template": {"spec": {"replicatedJobs": [{"name": "launcher", **JOB}]}}},
            r"no replicated job 'node' .*\(there are: launcher\)",
        ),
        (
            {"template": {"spec": {"replicatedJobs": [{"name": "node", **JOB}]}}},
            "no container 'node'",
        ),
        (
            {"template": {"spec": {"replicatedJobs": [{"name": "node", "template": POD}]}}},
            "'node' has no label trainer.kubeflow.org/trainjob-ancestor-step=trainer",
        ),
        (
            {
                "template": {
                    "spec": {
                        "replicatedJobs": [
                            {"name": "dataset-initializer", **JOB},
                            {"name": "node", **JOB},
                        ]
                    }
                }
            },
            "runs dataset-initializer beside the training",
        ),
    ],
)
def test_a_runtime_that_cannot_train_this_is_refused_with_the_reason(
    spec: Object, told: str, server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    server.create("clustertrainingruntimes", a_runtime("training-hub", **spec), "")
    with pytest.raises(ConfigError, match=f"ClusterTrainingRuntime training-hub: .*{told}"):
        find(cluster)


def test_a_runtime_without_a_torch_policy_serves(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = reach(server, monkeypatch)
    plain = a_runtime("training-hub", mlPolicy={"numNodes": 1})
    server.create("clustertrainingruntimes", plain, "")
    assert find(cluster).name == "training-hub"
    unset = a_runtime("without")
    del unset["spec"]["mlPolicy"]
    server.create("clustertrainingruntimes", unset, "")
    assert find(cluster, "without").name == "without"


def test_a_time_to_live_that_would_run_the_job_again_is_warned_of(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = reach(server, monkeypatch)
    made = a_runtime("training-hub")
    server.create("clustertrainingruntimes", made, "")
    find(cluster)
    assert "ttlSecondsAfterFinished" not in caplog.text
    made["metadata"]["name"] = "short"
    made["spec"]["template"]["spec"]["ttlSecondsAfterFinished"] = 60
    server.create("clustertrainingruntimes", made, "")
    find(cluster, "short")
    assert "ttlSecondsAfterFinished" in caplog.text


# Shapes


def shape(cluster: Cluster, folder: Path, trainer_api: str = "auto") -> str:
    run = run_in(folder)
    job = job_of(run)
    params = TrainParams.model_validate({"trainer_api": trainer_api})
    return runtimes.shape(
        cluster, params, lambda api: render(job, run, api, Runtime(name="training-hub"))
    )


@pytest.mark.parametrize("version", ["v2.1", "v2.2"])
@pytest.mark.parametrize("asked", ["the definition", "a dry run"])
def test_the_shape_is_that_of_the_trainer_there(
    asked: str, version: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubernetesServer(kinds(schema_of(version)), token=TOKEN) as server:
        with_definition(server, schema_of(version))
        if asked == "a dry run":
            server.forbidden.add(("get", "customresourcedefinitions"))
        cluster = reach(server, monkeypatch)
        assert shape(cluster, tmp_path) == version
        assert trainjobs(cluster)["items"] == []
        # A job of an attempt before is no reason to think otherwise.
        run = run_in(tmp_path)
        server.create(PLURAL, render(job_of(run), run, version, Runtime(name="a")))
        assert shape(cluster, tmp_path) == version


def test_the_shape_that_a_parameter_names_is_not_asked_for(
    server: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shape(reach(server, monkeypatch), tmp_path, "v2.1") == "v2.1"
    assert server.requests == []


@pytest.mark.parametrize("can_read", [True, False])
def test_a_trainer_that_takes_neither_shape_is_too_old(
    can_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubernetesServer(kinds(schema_of("v2.0")), token=TOKEN) as server:
        with_definition(server, schema_of("v2.0"))
        if not can_read:
            server.forbidden.add(("get", "customresourcedefinitions"))
        with pytest.raises(ConfigError, match=r"older than 2.1"):
            shape(reach(server, monkeypatch), tmp_path)


def test_without_trainer_the_cluster_is_told_to_lack_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubernetesServer(kinds({})[3:], token=TOKEN) as server:
        cluster = reach(server, monkeypatch)
        with pytest.raises(ConfigError, match=r"install Kubeflow Trainer 2.1 or later"):
            find(cluster)


@pytest.mark.parametrize(
    ("api", "tag"), [("v2.1", "v2.1.0"), ("v2.2", "v2.2.1"), ("v2.2", "v2.3.0")]
)
def test_a_real_definition_takes_the_job_under_strict_validation(
    api: Api, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = argo_schemas.trainer_schema("TrainJob", tag)
    with KubernetesServer(kinds(schema), token=TOKEN) as server:
        server.forbidden.add(("get", "customresourcedefinitions"))
        cluster = reach(server, monkeypatch)
        assert shape(cluster, tmp_path) == api
        run = run_in(tmp_path)
        sent = render(job_of(run, deadline="1h"), run, api, Runtime(name="training-hub"))
        stored: Any = client.CustomObjectsApi(cluster.api).create_namespaced_custom_object(
            GROUP, VERSION, "default", PLURAL, sent, field_validation="Strict"
        )
        assert stored["spec"] == sent["spec"]


# Owners


def a_pod(name: str, uid: str) -> Object:
    owner = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": "nightly",
        "uid": uid,
    }
    return {"metadata": {"name": name, "ownerReferences": [owner | {"controller": True}]}}


def test_the_workflow_that_owns_this_pod_owns_the_trainjob(
    server: KubernetesServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = reach(server, monkeypatch)
    monkeypatch.setenv("POD_NAME", "nightly-train-1")
    server.create("pods", a_pod("nightly-train-1", "u-1"))
    server.fail("GET", "/pods/", 503)
    with pytest.raises(TransientError):  # not sent without an owner for that
        runtimes.owner(cluster, run_in(tmp_path))
    assert runtimes.owner(cluster, run_in(tmp_path)) == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": "nightly",
        "uid": "u-1",
    }


def test_a_cluster_that_does_not_have_this_pod_gets_no_owner_that_it_would_miss(
    server: KubernetesServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = reach(server, monkeypatch)
    monkeypatch.setenv("POD_NAME", "nightly-train-1")
    assert runtimes.owner(cluster, run_in(tmp_path)) is None
    assert "will not be deleted with its run" in caplog.text
    server.create("pods", a_pod("nightly-train-1", "another"))
    assert runtimes.owner(cluster, run_in(tmp_path)) is None
    bound = Bound(workspace=tmp_path / "alone")
    assert runtimes.owner(cluster, Run(bound)) is None


# A run that is stopped


ARGO_STOP = json.dumps(
    json.dumps([{"displayName": "train", "message": "Stopped with strategy 'Stop'"}])
)
FAILED = json.dumps(json.dumps([{"displayName": "train", "message": "Error (exit code 143)"}]))


def stopped(server: KubernetesServer, run: Run, failures: str) -> subprocess.CompletedProcess[str]:
    """The exit handler of the run's workflow."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "steps.train.stop"),
            f"--workspace={run.workspace.root}",
            f"--run-name={run.name}",
            f"--volume-claim={run.bound.volume_claim}",
            f"--volume-path={run.bound.volume_path}",
            "--namespace=default",
            f"--failures={failures}",
        ],
        env={
            **os.environ,
            "KUBERNETES_SERVER_URL": server.url,
            "KUBERNETES_AUTH_TOKEN": TOKEN,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_a_run_that_was_stopped_takes_its_trainjob_with_it(
    server: KubernetesServer, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    job = server.create(PLURAL, render(job_of(run), run, "v2.2", Runtime(name="a")))
    other = render(job_of(run), run, "v2.2", Runtime(name="a"))
    other["metadata"]["name"] = "another"
    server.create(PLURAL, other)
    left = stopped(server, run, FAILED)
    assert (left.returncode, server.asked("DELETE", PLURAL)) == (0, 0)
    assert "left to a retry" in left.stderr
    gone = stopped(server, run, ARGO_STOP)
    assert gone.returncode == 0, gone.stderr
    assert f"TrainJob {job['metadata']['name']} is deleted" in gone.stderr
    assert server.get(PLURAL, "another")
    # Until its workers are gone, so that a retry sees them end.
    assert server.get(PLURAL, job["metadata"]["name"])["metadata"]["deletionTimestamp"]
    server.collect(PLURAL, job["metadata"]["name"])
    again = stopped(server, run, ARGO_STOP)
    assert (again.returncode, "has no TrainJob" in again.stderr) == (0, True)
    server.fail("GET", PLURAL, 503)
    assert stopped(server, run, ARGO_STOP).returncode == 75
