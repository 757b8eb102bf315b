"""The TrainJob that is sent: valid to every Trainer, with all that the parameters and the cluster say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from steps import flags
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.params import Bound
from steps.train.backend import Job
from steps.train.params import TrainParams
from steps.train.trainjob import limits, manifest
from steps.train.trainjob.manifest import Api, Runtime, render
from tests import argo_schemas
from tests.cluster_settings import cluster
from workflows.argo import arguments, parameters
from workflows.pipeline import SFT
from workflows.settings import Settings

RUNTIME = Runtime(name="sft-training")
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "nightly", "uid": "u-1"}
SHAPES: tuple[tuple[Api, str], ...] = (
    ("v2.1", "v2.1.0"),
    ("v2.2", "v2.2.1"),
    ("v2.2", "v2.3.0"),
)
POD: dict[str, Any] = {
    "service_account": "sft-train-worker",
    "image_pull_secrets": ["quay"],
    "env": {"HTTPS_PROXY": "http://proxy:3129", "SSL_CERT_FILE": "/etc/sft/ca/ca.crt"},
    "certificates": {"config_map": "trust", "key": "bundle.pem", "path": "/etc/sft/ca/ca.crt"},
    "env_secret": "team-env",
    "labels": {
        "team.example/name": "a",
        "app.kubernetes.io/part-of": "dev-sft",
        # Of the engine's own pods, each of which queues; a TrainJob queues as one.
        "kueue.x-k8s.io/queue-name": "engine",
    },
    "annotations": {"note": "yes"},
    "user": 10001,
    "scratch": "5Gi",
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "half a core": {"cpu": "500m", "memory": "1.5Gi", "shm_size": "1Gi", "workers": 1},
    "other GPUs": {"gpu": 8, "gpu_resource": "nvidia.com/mig-1g.5gb", "num_procs": "4"},
    "placed": {
        "node_selector": "zone=a,gpu.example/model=h100",
        "tolerations": [
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "batch", "operator": "Equal", "value": "yes"},
        ],
        "queue": "gpus",
    },
    "marked": {"labels": "team=a,cost-centre=7", "annotations": "note=a,b and c,url=http://x/?a=b"},
    "many nodes": {"workers": 128},
}


@pytest.fixture(autouse=True)
def _no_secret_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_ENV_WANDB_API_KEY", "the-key-itself")


def run_in(folder: Path, **bound: Any) -> Run:
    """The run `nightly` on the claim `sft-runs`, which is mounted at `folder`."""
    given = {
        "workspace": folder / "runs" / "nightly",
        "claims": folder.parent / "claims",
        "run_name": "nightly",
        "run_uid": "u-1",
        "volume_claim": "sft-runs",
        "volume_path": "runs/nightly",
        "worker_image": "quay.io/team/sft-train:1",
        "worker_pod": POD,
    }
    return Run(Bound.model_validate(given | bound), fingerprint="f" * 64)


def job_of(run: Run, base: Path | None = None, rows: int = 10, **params: Any) -> Job:
    root = run.workspace.root
    return Job(
        params=TrainParams.model_validate(params),
        base=base or root.parent.parent / "cache" / "model",
        tokens=root / "tokens" / "train.jsonl",
        rows=rows,
        checkpoints=root / "checkpoints",
        curve=root / "training" / "curve.jsonl",
    )


def made(folder: Path, api: Api = "v2.2", **params: Any) -> dict[str, Any]:
    run = run_in(folder)
    return render(job_of(run, **params), run, api, RUNTIME, OWNER)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """Metadata and spec of the workers' pods, in either shape."""
    spec = job["spec"]
    if "podTemplateOverrides" in spec:
        (override,) = spec["podTemplateOverrides"]
        assert override["targetJobs"] == [{"name": "node"}]
        return dict(override)
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return dict(node["template"]["spec"]["template"])


def variables(job: dict[str, Any]) -> dict[str, Any]:
    listed = job["spec"]["trainer"]["env"]
    found = {each["name"]: each.get("value", each.get("valueFrom")) for each in listed}
    assert len(found) == len(listed)
    return found


# The shapes


@pytest.mark.parametrize(("api", "tag"), SHAPES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_object_is_valid_to_the_definition_of_its_trainer(
    name: str, api: Api, tag: str, tmp_path: Path
) -> None:
    job = made(tmp_path, api, **COMBINATIONS[name])
    assert argo_schemas.trainer_faults(job, tag) == []


def test_no_trainer_takes_the_others_shape(tmp_path: Path) -> None:
    assert "podTemplateOverrides" in str(
        argo_schemas.trainer_faults(made(tmp_path, "v2.1"), "v2.3.0")
    )
    assert "runtimePatches" in str(argo_schemas.trainer_faults(made(tmp_path, "v2.2"), "v2.1.0"))


@pytest.mark.parametrize("api", ["v2.1", "v2.2"])
def test_labels_and_annotations_are_on_the_job_and_on_its_pods(api: Api, tmp_path: Path) -> None:
    job = made(tmp_path, api, labels="team=a", annotations="note=b,c", queue="gpus")
    pod = pod_of(job)["metadata"]
    own = {
        "app.kubernetes.io/part-of": "dev-sft",
        "app.kubernetes.io/component": "train-worker",
        "app.kubernetes.io/instance": "nightly",
    }
    assert pod["labels"] == {"team.example/name": "a", "team": "a"} | own
    assert pod["annotations"] == {"note": "b,c"}
    assert job["metadata"]["labels"] == pod["labels"] | {"kueue.x-k8s.io/queue-name": "gpus"}
    assert job["metadata"]["annotations"] == {"note": "b,c", "sft.fingerprint": "f" * 64}
    between = (
        [job["spec"]]
        if api == "v2.1"
        else [
            job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["metadata"],
            job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
                "replicatedJobs"
            ][0]["template"]["metadata"],
        ]
    )
    for each in between:
        assert (each["labels"], each["annotations"]) == (pod["labels"], pod["annotations"])


def test_only_the_newer_shape_carries_the_security_context(tmp_path: Path) -> None:
    old, new = (made(tmp_path, api) for api in ("v2.1", "v2.2"))
    secured = pod_of(new)["spec"]
    assert secured["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert secured["securityContext"]["fsGroup"] == 10001
    assert "securityContext" not in json.dumps(old)


# What it says


@pytest.mark.parametrize("api", ["v2.1", "v2.2"])
def test_a_deadline_is_kept_by_who_follows_the_job_not_by_the_trainer(
    api: Api, tmp_path: Path
) -> None:
    """So time without nodes does not count, and a longer one attaches to the job that runs."""
    assert made(tmp_path, api, deadline="2h") == made(tmp_path, api, deadline="3h")
    assert manifest.deadline(TrainParams(deadline="2h")) == 7200


def test_resources_are_asked_for_as_they_are_limited(tmp_path: Path) -> None:
    trainer = made(tmp_path, gpu=4, cpu="500m", memory="32Gi")["spec"]["trainer"]
    wanted = {"cpu": "500m", "memory": "32Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"requests": wanted, "limits": wanted}
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 4)


def test_workers_find_the_job_the_volume_and_one_another(tmp_path: Path) -> None:
    job = made(tmp_path, workers=2)
    assert job["spec"]["trainer"]["image"] == "quay.io/team/sft-train:1"
    assert job["spec"]["trainer"]["command"] == ["python", "-m", "steps.train.worker"]
    # Or those of the runtime would come after the command.
    assert job["spec"]["trainer"]["args"] == [
        str(tmp_path / "runs/nightly/checkpoints/job.json"),
    ]
    pod = pod_of(job)["spec"]
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts == {
        "sft-runs": str(tmp_path),
        "sft-tmp": "/tmp",
        "sft-shm": "/dev/shm",
        "sft-certificates": "/etc/sft/ca",
    }
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["sft-runs"]["persistentVolumeClaim"] == {"claimName": "sft-runs"}
    assert volumes["sft-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes["sft-tmp"]["emptyDir"] == {"sizeLimit": "5Gi"}
    assert volumes["sft-certificates"]["configMap"] == {
        "name": "trust",
        "items": [{"key": "bundle.pem", "path": "ca.crt"}],
    }
    assert pod["serviceAccountName"] == "sft-train-worker"
    assert pod["imagePullSecrets"] == [{"name": "quay"}]
    env, name = variables(job), job["metadata"]["name"]
    assert (env["SFT_NODES"], env["SFT_MASTER_ADDR"]) == ("2", f"{name}-node-0-0.{name}")
    assert (env["HOME"], env["HF_HUB_OFFLINE"]) == ("/tmp", "1")
    assert env["HTTPS_PROXY"] == "http://proxy:3129"
    assert job["metadata"]["ownerReferences"] == [OWNER]


def test_a_base_model_on_another_claim_is_mounted_read_only_under_its_own_path(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path / "volume")
    models = tmp_path / "claims" / "models"
    models.mkdir(parents=True)
    pod = pod_of(render(job_of(run, models / "llama"), run, "v2.1", RUNTIME))["spec"]
    volume = next(each for each in pod["volumes"] if each["name"] == "sft-base-model")
    mount = next(
        each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "sft-base-model"
    )
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert mount == {"name": "sft-base-model", "mountPath": str(models), "readOnly": True}
    with pytest.raises(UsageError, match=r"--model: .*/elsewhere.*\(there are: models, sft-runs\)"):
        render(job_of(run, tmp_path / "elsewhere"), run, "v2.1", RUNTIME)


def test_what_kubernetes_would_replace_arrives_as_it_was_given(tmp_path: Path) -> None:
    assert variables(made(tmp_path, env_vars="A=$(HOME)"))["A"] == "$$(HOME)"


def test_a_runtime_of_the_namespace_is_named_as_such(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    runtime = Runtime(kind="TrainingRuntime", name="ours")
    assert render(job_of(run), run, "v2.2", runtime)["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "ours",
    }


# Secrets


@pytest.mark.parametrize("api", ["v2.1", "v2.2"])
def test_secrets_are_passed_on_by_reference_and_never_by_value(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = {
        "HF_TOKEN": "hf_secret",
        "KUBERNETES_AUTH_TOKEN": "kube-secret",
        "OCI_PULL_SECRET_MODEL_DOWNLOAD": "pull-secret",
        "WANDB_API_KEY": "unprefixed-secret",
    }
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    job = made(tmp_path, api, hf_token="hf_parameter", pull_secret="pull_parameter")
    text = json.dumps(job)
    for value in (*hidden.values(), "the-key-itself", "hf_parameter", "pull_parameter"):
        assert value not in text
    reference = {"name": "team-env", "key": "WANDB_API_KEY", "optional": True}
    assert variables(job)["WANDB_API_KEY"] == {"secretKeyRef": reference}


def test_a_variable_of_the_parameters_stands_in_place_of_a_secrets_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAIN_ENV_WANDB_PROJECT", "from the secret")
    assert variables(made(tmp_path, env_vars="WANDB_PROJECT=mine"))["WANDB_PROJECT"] == "mine"


# Names


@pytest.mark.parametrize(
    "name",
    ["nightly", "7b", "Über-Lauf", "a.b.c", "x" * 63, "sft-pipeline-" + "y" * 50, "-", "1" * 60],
)
def test_a_name_is_one_that_jobset_can_make_pods_of(name: str, tmp_path: Path) -> None:
    found = manifest.name(run_in(tmp_path, run_name=name))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(f"{found}-node-0-9999-abcde") <= 63


def test_a_retry_finds_its_own_job_and_no_other_run_shares_it(tmp_path: Path) -> None:
    long = "a" * 60
    names = [
        manifest.name(run_in(tmp_path)),
        manifest.name(run_in(tmp_path, run_name=f"{long}1")),
        manifest.name(run_in(tmp_path, run_name=f"{long}2")),
        manifest.name(run_in(tmp_path, volume_claim="others")),
        manifest.name(run_in(tmp_path, run_name="night.ly")),
        manifest.name(run_in(tmp_path, run_name="night-ly")),
    ]
    assert len(set(names)) == len(names)
    # Submitted again under its name it is another workflow in the same folder.
    assert names[0] == manifest.name(run_in(tmp_path, run_uid="u-2"))
    assert names[0].startswith("nightly-")


# Refusals


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"gpu": 0}, "--gpu 0: .*--launcher local"),
        ({"num_procs": "2"}, r"--num-procs 2: more processes than GPUs \(--gpu 1\)"),
        ({"cpu": "0"}, "--cpu 0: must be more than 0"),
        ({"memory": "0Gi"}, "--memory 0Gi: must be more than 0"),
        ({"shm_size": "64m"}, "--shm-size 64m: m is a thousandth of a byte"),
        ({"memory": "16Gi"}, "--shm-size 16Gi: counts as memory.*--memory 16Gi"),
        ({"shm_size": "0"}, "--shm-size 0: must be more than 0"),
        ({"labels": "team"}, "--labels: 'team' is no k=v"),
        ({"labels": "a=b,-c=d"}, "--labels a: 'b,-c=d' is no label's value"),
        ({"labels": f"a={'x' * 64}"}, "--labels a: .* is no label's value"),
        ({"labels": "a/b/c=d"}, "--labels: 'a/b/c' is no key"),
        ({"labels": "kueue.x-k8s.io/queue-name=q"}, "--labels kueue.*: use --queue q"),
        (
            {"labels": "app.kubernetes.io/component=x"},
            "--labels app.kubernetes.io/component: is set",
        ),
        ({"annotations": "jobset.sigs.k8s.io/x=y"}, "--annotations jobset.sigs.k8s.io/x: is set"),
        ({"node_selector": "zone=a b"}, "--node-selector zone: 'a b' is no label's value"),
        ({"env_vars": "PET_NNODES=2"}, "--env-vars PET_NNODES: names that begin with PET_"),
        ({"env_vars": "PET_RDZV_ID=2"}, "--env-vars PET_RDZV_ID"),
        ({"env_vars": "SFT_NODES=2"}, "--env-vars SFT_NODES"),
        ({"env_vars": "WANDB_API_KEY=x"}, "--env-vars WANDB_API_KEY: .*the secret 'train-env'"),
        ({"env_vars": "HF_TOKEN=x"}, "--env-vars HF_TOKEN: .*the secret 'train-env'"),
        ({"runtime": "My Runtime"}, "--runtime 'My Runtime': not the name of an object"),
    ],
)
def test_what_no_trainjob_can_be_is_refused_with_the_parameter_to_change(
    params: dict[str, Any], told: str
) -> None:
    found = limits.refusals(TrainParams.model_validate(params))
    assert len(found) == 1
    assert re.match(told, found[0]), found
    assert "=x" not in found[0]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_a_trainjob_can_be_is_not_refused(name: str) -> None:
    given = TrainParams.model_validate(COMBINATIONS[name])
    assert limits.refusals(given) == []
    with_env = given.model_copy(update={"env_vars": "TOKENIZERS_PARALLELISM=1,KEYBOARD=2"})
    assert limits.refusals(with_env) == []


def test_a_reserved_key_of_the_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_ENV_PET_NNODES", "2")
    assert limits.refusals(TrainParams()) == [
        "secret 'train-env', key PET_NNODES: names that begin with PET_ or SFT_ are taken"
    ]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"fsdp_sharding": "NO_SHARD"}, "NO_SHARD: every GPU holds the whole model"),
        ({"fsdp_sharding": "HYBRID_SHARD"}, "HYBRID_SHARD shards within a worker"),
        ({"gpu": 4, "num_procs": "2"}, "--num-procs 2 leaves 2 of a worker's GPUs idle"),
    ],
)
def test_what_is_perhaps_not_meant_is_noted(params: dict[str, Any], told: str) -> None:
    (note,) = limits.notes(TrainParams.model_validate(params))
    assert re.search(told, note)
    assert limits.notes(TrainParams()) == []


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ({"worker_image": ""}, "--worker-image is empty: .*images.registry"),
        ({"volume_claim": ""}, "--volume-claim is empty"),
        ({"volume_path": "other"}, "--volume-path other: the workspace .* does not end so"),
    ],
)
def test_a_run_without_image_or_claim_is_refused_before_anything_is_made(
    bound: dict[str, Any], told: str, tmp_path: Path
) -> None:
    run = run_in(tmp_path, **bound)
    with pytest.raises(UsageError, match=told):
        render(job_of(run), run, "v2.2", RUNTIME)


def test_what_the_engine_gives_the_pods_is_refused_by_name_where_it_is_unknown(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path, worker_pod={"serviceAccount": "mine"})
    with pytest.raises(UsageError, match="--worker-pod: serviceAccount"):
        render(job_of(run), run, "v2.2", RUNTIME)


# From a cluster's settings


def submitted(settings: Settings, folder: Path, **given: str) -> tuple[Run, Job]:
    """What the train step of a rendered template gets, as its command reads it."""
    step = SFT.step("train")
    values = {each.name: str(each.value) for each in parameters(settings, SFT) if each.value}
    words = []
    for word in arguments(step, settings):
        for name, value in values.items():
            word = word.replace(f"{{{{workflow.parameters.{name}}}}}", value)
        for tag, value in {"name": "nightly", "uid": "u-1", "namespace": "sft"}.items():
            word = word.replace(f"{{{{workflow.{tag}}}}}", value)
        words.append(re.sub(r"\{\{.*?\}\}", "", word))
    parsed = dict(word[2:].split("=", 1) for word in words)
    found = {name.replace("-", "_"): value for name, value in parsed.items()}
    own = {"workspace": str(folder / "runs/nightly"), "outputs": str(folder)}
    bound, wrong = flags.validate(
        Bound, {name: found[name] for name in Bound.model_fields if name in found} | own
    )
    assert bound is not None, wrong
    params, wrong = flags.validate(
        TrainParams,
        {name: found[name] for name in TrainParams.model_fields if name in found} | given,
    )
    assert params is not None, wrong
    run = Run(bound)
    job = job_of(run)
    return run, Job(**{**vars(job), "params": params})


@pytest.mark.parametrize(("api", "tag"), SHAPES)
@pytest.mark.parametrize(
    "name", ["a namespace", "proxy and certificates", "scheduling", "openshift"]
)
def test_a_clusters_settings_reach_the_trainjob(
    name: str, api: Api, tag: str, tmp_path: Path
) -> None:
    settings = cluster(name, namespace="sft")
    run, job = submitted(settings, tmp_path)
    sent = render(job, run, api, RUNTIME)
    assert argo_schemas.trainer_faults(sent, tag) == []


def test_settings_for_pods_with_gpus_are_defaults_of_the_runs_parameters(tmp_path: Path) -> None:
    settings = cluster("scheduling", namespace="sft", name_prefix="dev-")
    run, job = submitted(settings, tmp_path)
    assert limits.refusals(job.params) == []
    sent = render(job, run, "v2.2", RUNTIME)
    pod = pod_of(sent)
    assert job.params.runtime == "dev-sft-training"
    assert run.bound.namespace == "sft"
    assert pod["spec"]["nodeSelector"] == {"zone": "a", "gpu": "mi300"}
    assert {each["key"] for each in pod["spec"]["tolerations"]} == {"batch", "nvidia.com/gpu"}
    assert "amd.com/gpu" in sent["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "quay"}]
    assert pod["spec"]["serviceAccountName"] == "dev-sft-train-worker"
    assert pod["metadata"]["labels"]["team.example/name"] == "a"
    assert pod["metadata"]["annotations"] == {"note": "yes: 5e-06"}
    assert sent["spec"]["trainer"]["image"].endswith(f"sft-train@sha256:{'0' * 64}")
    _, mine = submitted(settings, tmp_path, runtime="training-hub", gpu_resource="nvidia.com/gpu")
    assert (mine.params.runtime, mine.params.gpu_resource) == ("training-hub", "nvidia.com/gpu")
    # Where the step trains in its own pod they are the pod's, and would be refused here.
    alone = cluster("scheduling", launcher="local")
    local = {each.name: each.value for each in parameters(alone, SFT)}
    assert local["phase_02_train_opt_gpu_resource"] == "nvidia.com/gpu"


def test_proxy_and_certificates_reach_the_workers(tmp_path: Path) -> None:
    settings = cluster("proxy and certificates", namespace="sft")
    run, job = submitted(settings, tmp_path)
    sent = render(job, run, "v2.2", RUNTIME)
    env = variables(sent)
    assert env["https_proxy"] == "http://proxy:3129"
    assert env["SSL_CERT_FILE"] == "/etc/sft/ca/ca.crt"
    assert env["HF_ENDPOINT"] == "https://hub.example"
    assert "sft-certificates" in [each["name"] for each in pod_of(sent)["spec"]["volumes"]]
