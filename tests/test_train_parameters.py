"""Every parameter of the train step, changed: its TrainJob, the workers, or the step itself show it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.entrypoint import Run
from steps.errors import ConfigError
from steps.flags import flag
from steps.record import Asset, Record
from steps.train import __main__ as step
from steps.train import checkpoints, fine_tune, instructlab, launcher, local, trainjob
from steps.train.backend import Job
from steps.train.params import TrainParams
from steps.train.trainjob import manifest
from steps.train.trainjob.cluster import connect
from tests.test_trainjob_object import job_of, pod_of, run_in, variables
from tests.tiny import CHATML

OTHERS = {"model": "./base", "trainer_api": "v2.2"}
"""Given where another is changed: what there is here in place of the Hub's default model and of a cluster."""
LIMITS = "TrainJob.spec.trainer.resourcesPerNode.limits"
SEEN: dict[str, tuple[Any, str, Any]] = {
    "train_batch": (64, "worker.--effective_batch_size", "64"),
    "epochs": (3, "worker.--num_epochs", "3"),
    "gpu": (2, f"{LIMITS}.nvidia.com/gpu", "2"),
    "model": ("./other", "step.model", "other"),
    "tokens": (4096, "worker.--max_batch_len", "4096"),
    "workers": (3, "TrainJob.spec.trainer.numNodes", 3),
    "annotations": ("a=b", "TrainJob.metadata.annotations.a", "b"),
    "cpu": ("500m", f"{LIMITS}.cpu", "500m"),
    "env_vars": ("A=1,B=2", "TrainJob.env.B", "2"),
    "hf_token": ("hf_mine", "step.hf_token", "hf_mine"),
    "labels": ("a=b", "TrainJob.metadata.labels.a", "b"),
    "learning_rate": (1e-4, "worker.--learning_rate", "0.0001"),
    "lr_warmup": (5, "worker.--num_warmup_steps", "5"),
    "lr_scheduler": ("linear", "worker.--lr_scheduler", "linear"),
    "max_seq_len": (512, "step.longest row", 512),
    "memory": ("100Gi", f"{LIMITS}.memory", "100Gi"),
    "num_procs": ("2", "TrainJob.spec.trainer.numProcPerNode", 2),
    "pull_secret": ('{"auths": {}}', "step.pull_secret", '{"auths": {}}'),
    "save_epoch": (False, "worker.models after an epoch", ()),
    "save_full_state": (True, "step.keeps the state", True),
    "fsdp_sharding": ("NO_SHARD", "worker.--fsdp_sharding_strategy", "NO_SHARD"),
    "save_samples": (100, "worker.models after a step", ("samples-128",)),
    "seed": (7, "worker.--seed", "7"),
    "use_liger": (True, "worker.--model-class", "Liger"),
    "launcher": ("trainjob", "step.launcher", "steps.train.trainjob"),
    "cluster_auth": ("kubeconfig", "step.login", "--cluster-auth kubeconfig"),
    "runtime": ("mine", "TrainJob.spec.runtimeRef.name", "mine"),
    "chat_template": ("chat.jinja", "step.template", "chat.jinja"),
    "checkpoint_minutes": (5, "worker.keeps a state after ten minutes", True),
    "trainer_api": ("v2.1", "TrainJob.shape", "podTemplateOverrides"),
    "queue": ("gpus", "TrainJob.metadata.labels.kueue.x-k8s.io/queue-name", "gpus"),
    "gpu_resource": ("amd.com/gpu", f"{LIMITS}.amd.com/gpu", "1"),
    "node_selector": ("zone=a", "TrainJob.pod.nodeSelector.zone", "a"),
    "tolerations": ([{"key": "gpu"}], "TrainJob.pod.tolerations", [{"key": "gpu", "operator": "Exists"}]),
    "shm_size": ("1Gi", "TrainJob.volume.sft-shm.emptyDir.sizeLimit", "1Gi"),
    "deadline": ("2h", "step.deadline", 7200),
}  # fmt: skip
"""By parameter: a value that is not the default, the place where it shows, and as what."""

BESIDE: dict[str, dict[str, Any]] = {
    "num_procs": {"gpu": 4},  # of one GPU there is one process anyway
    "save_epoch": {"epochs": 2},  # the last epoch's model is the trained one
}
"""Without which a parameter has no effect."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose dataset step is done, and beside it two models and a chat template."""
    for name in ("KUBERNETES_SERVER_URL", "KUBERNETES_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    for name in ("base", "other"):
        Path(name).mkdir()
        Path(name, "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
        Path(name, "tokenizer.json").write_text("{}")
        Path(name, "model.safetensors").touch()
    Path("chat.jinja").write_text(CHATML)
    made = run_in(tmp_path)
    Record(
        step="dataset",
        status="done",
        fingerprint="",
        started=datetime.now(UTC),
        finished=datetime.now(UTC),
        seconds=0,
        parameters={},
        inputs={},
        outputs={"train": Asset(sha256="1"), "eval": Asset(sha256="2")},
        metrics={},
        versions={},
    ).write(made.workspace)
    return made


def seen(run: Run, **given: Any) -> dict[str, Any]:
    """All that shows of the parameters, each place of it by its path."""
    params = TrainParams.model_validate(OTHERS | given)
    job = job_of(run, rows=400, **(OTHERS | given))
    job.write(job.file)
    return flat(
        {
            "TrainJob": of_trainjob(job, run),
            "worker": of_worker(Job.read(job.file)),
            "step": of_step(params, run),
        }
    )


def of_trainjob(job: Job, run: Run) -> dict[str, Any]:
    printed: dict[str, Any] = yaml.safe_load(trainjob.describe(job, run))
    pod = pod_of(printed)["spec"]
    return printed | {
        "shape": next(name for name in printed["spec"] if name.startswith(("runtimeP", "podT"))),
        "pod": pod,
        "env": variables(printed),
        "volume": {each["name"]: each for each in pod["volumes"]},
    }


def of_worker(job: Job) -> dict[str, Any]:
    """What a worker starts by the job's file, and what it keeps ten minutes after the last state."""
    words = instructlab.command(job, base=job.base, processes=1, flash_attention=True)
    after_a_step = checkpoints.due(job, 1, seconds=600)
    return dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word) | {
        "keeps a state after ten minutes": after_a_step.state,
        "models after a step": after_a_step.models,
        "models after an epoch": checkpoints.due(job, job.steps_an_epoch, seconds=600).models,
    }


def of_step(params: TrainParams, run: Run) -> dict[str, Any]:
    inputs = step.inputs(params, run)
    state = checkpoints.state(run.workspace.checkpoints, 1)
    state.mkdir(parents=True, exist_ok=True)
    fine_tune._clean(params, run)
    try:
        login = connect(params, run.bound.namespace).credential
    except ConfigError as error:
        login = str(error).partition(":")[0]
    return step._credentials(params) | {
        "model": Path(inputs["base_model"].path or "").name,
        "template": Path(inputs["chat_template"].path or "").name if "chat_template" in inputs else "",
        "longest row": fine_tune._limits(params).longest,
        "keeps the state": state.exists(),
        "launcher": getattr(launcher.choose(params), "__name__", ""),
        "login": login,
        "deadline": manifest.deadline(params),
    }  # fmt: skip


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """All places of an object that have a value of their own."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in flat(each, f"{path}.{key}").items()}
    return {path.lstrip("."): value}


@pytest.mark.parametrize("name", TrainParams.model_fields)
def test_each_parameter_changes_what_it_is_for(name: str, run: Run) -> None:
    value, place, shown = SEEN[name]
    assert value != TrainParams.model_fields[name].default
    others = BESIDE.get(name, {})
    assert seen(run, **others).get(place) != shown
    assert seen(run, **others, **{name: value})[place] == shown


@pytest.mark.parametrize("name", TrainParams.model_fields)
def test_what_only_a_trainjob_would_show_is_refused_without_one(name: str) -> None:
    value, place, _ = SEEN[name]
    only_there = place.startswith("TrainJob.") or place in ("step.login", "step.deadline")
    # Without a GPU there is nothing to shard over; variables are set in the step's own process.
    only_there = (only_there or name in ("fsdp_sharding", "use_liger")) and name != "env_vars"
    refused = local.refusals(TrainParams.model_validate({name: value}))
    assert [flag(name) in told for told in refused] == [True] * only_there
