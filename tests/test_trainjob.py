"""The train step on a cluster: its TrainJob is left where the step is stopped, and deleted at the end."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from steps.entrypoint import Run
from steps.errors import ConfigError, DataError, StepError
from steps.params import Bound
from steps.train import trainjob
from steps.train.backend import Job
from steps.train.params import TrainParams
from steps.train.started import Started, alone, refuse_another
from steps.train.trainjob import manifest
from steps.train.trainjob.patience import Pace
from steps.workspace import Workspace
from tests.servers.kubernetes import KubernetesServer
from tests.test_train import FAST, TRAIN, train, workspace_in
from tests.tiny import make_model
from tests.trainer import JOBSET, NAMESPACE, Trainer, condition, kinds

TOKEN = "a-token"
METRICS = "training_params_and_metrics_global0.jsonl"
STEP = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
POD = {"spec": {"containers": [{"name": "node"}]}}
RUNTIME = {
    "metadata": {"name": "training-hub"},
    "spec": {
        "mlPolicy": {"torch": {}},
        "template": {"spec": {"replicatedJobs": [{"name": "node", "template": {"metadata": {"labels": STEP}, "spec": {"template": POD}}}]}},
    },
}  # fmt: skip
PACE = Pace(look=1, first_wait=0.02, results=0.0)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """A cluster with Kubeflow Trainer 2.3 and a runtime, and the way to it in the environment."""
    with KubernetesServer(kinds(), (NAMESPACE,), TOKEN) as api:
        api.create("clustertrainingruntimes", RUNTIME)
        monkeypatch.setenv("KUBERNETES_SERVER_URL", api.url)
        monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", TOKEN)
        yield api


@pytest.fixture
def job(tmp_path: Path) -> tuple[Job, Run]:
    """A training of two steps, and its run."""
    workspace = tmp_path / "run"
    checkpoints = workspace / "checkpoints"
    checkpoints.mkdir(parents=True)
    (workspace / "training").mkdir()
    run = Run(Bound.model_validate({"workspace": workspace, **bound()}), fingerprint="f")
    params = TrainParams(train_batch=8, trainer_api="v2.2")
    return Job(
        params,
        base=tmp_path / "base",
        tokens=workspace / "tokens.jsonl",
        rows=16,
        checkpoints=checkpoints,
        curve=workspace / "training" / "curve.jsonl",
    ), run


def bound() -> dict[str, str]:
    return {
        "namespace": NAMESPACE,
        "run_name": "one",
        "volume_claim": "sft-runs",
        "volume_path": "run",
        "worker_image": "quay.io/team/sft-train:1",
    }


def train_to(checkpoints: Path, steps: int, rows: int) -> None:
    """What node 0 writes while it trains, batches of 8 rows."""
    with (checkpoints / METRICS).open("w") as file:
        for step in range(1, steps + 1):
            told = {
                "step": step,
                "avg_loss": 1 / step,
                "samples_seen": min(8 * step, rows),
                "batch_size": 8,
                "overall_throughput": 4.0,
                "lr": 1e-3,
                "num_tokens_rank0": 100,
            }
            file.write(json.dumps(told) + "\n")


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[str]"]]:
    """Steps that shall not outlive a test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for step in found:
        step.kill()
        step.communicate()


def note_in(workspace: Path) -> Path:
    """What tells of a TrainJob that was not seen to end."""
    return workspace / "training" / "trainjob.json"


def step_of(workspace: Path, base: Path) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in bound().items()]
    own = ["--launcher=trainjob", "--trainer-api=v2.2", "--workers=1"]
    return [*TRAIN, f"--workspace={workspace}", f"--model={base}", *FAST, *own, *flags]


def start(
    workspace: Path, base: Path, started: list["subprocess.Popen[str]"], *more: str
) -> "subprocess.Popen[str]":
    step = subprocess.Popen(
        [*step_of(workspace, base), *more],
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    started.append(step)
    return step


def test_a_stopped_step_leaves_its_job_and_the_next_attempt_ends_it(
    api: KubernetesServer, tmp_path: Path, started: list["subprocess.Popen[str]"]
) -> None:
    base, workspace = make_model(tmp_path / "base"), workspace_in(tmp_path)
    run = Run(Bound.model_validate({"workspace": workspace, **bound()}))
    trainer = Trainer(api, manifest.name(run))
    pod = f"{trainer.name}-node-0-0-abcde"
    step = start(workspace, base, started)
    trainer.submitted()
    trainer.make()
    trainer.run(pod)
    told = ""
    ends = ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9))
    for number, (how, code) in enumerate(ends, 1):
        # Once the second is told, it is kept that the first one was.
        for text in (f"line {number}", f"and {number}"):
            trainer.log(pod, text)
            assert step.stderr
            while text not in (line := step.stderr.readline()):
                assert line, told
                told += line
            told += line
        step.send_signal(how)
        told += step.communicate(timeout=60)[1]
        assert step.returncode == code, told
        left = told.count("goes on without this step; the next attempt attaches to it")
        assert left == min(number, 2)  # who is killed says nothing
        assert trainer.has_job()
        step = start(workspace, base, started)
    api.wait_for(lambda: api.asked("GET", "follow=true") == 4)
    checkpoints = workspace / "checkpoints"
    train_to(checkpoints, steps=6, rows=48)
    shutil.copytree(base, checkpoints / "model")
    trainer.log(pod, "line 4")
    trainer.complete()
    told += step.communicate(timeout=120)[1]
    assert step.returncode == 0, told
    assert [told.count(f"node 0 | line {number}") for number in range(1, 5)] == [1, 1, 1, 1]
    assert told.count("is there already: attached to it") == 3
    assert json.loads((workspace / "train.json").read_text())["metrics"]["steps"] == 6
    assert (workspace / "model" / "config.json").exists()
    assert api.created("trainjobs") == 1
    assert not note_in(workspace).exists()
    trainer.collect()
    assert not trainer.has_job()
    assert not api.all("pods", NAMESPACE)
    sent = json.dumps(api.bodies)
    assert TOKEN not in sent


@pytest.mark.parametrize("launcher", ["local", "auto"])
def test_a_folder_that_a_trainjob_may_be_at_work_in_is_not_trained_in_here(
    api: KubernetesServer, tmp_path: Path, started: list["subprocess.Popen[str]"], launcher: str
) -> None:
    base, workspace = make_model(tmp_path / "base"), workspace_in(tmp_path)
    trainer = Trainer(
        api, manifest.name(Run(Bound.model_validate({"workspace": workspace, **bound()})))
    )
    step = start(workspace, base, started)
    trainer.submitted()
    step.send_signal(signal.SIGTERM)
    step.communicate(timeout=60)
    unreached = {"KUBERNETES_SERVER_URL": "", "KUBERNETES_AUTH_TOKEN": ""}
    for more in (["--check"], ["--dry-run"], []):
        done = train(workspace, base, f"--launcher={launcher}", *more, **unreached)
        assert done.returncode == 78, done.stderr
        told = done.stderr
        assert f"{note_in(workspace)}: TrainJob team/{trainer.name} ({api.url})" in told
        assert f"kubectl delete trainjob {trainer.name} -n team --cascade=foreground" in told
    assert (workspace / "checkpoints" / "job.json").exists()
    api.delete("trainjobs", trainer.name, NAMESPACE)
    note_in(workspace).unlink()
    done = train(workspace, base, f"--launcher={launcher}", **unreached)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("launcher", ["local", "trainjob"])
def test_a_folder_that_another_step_is_at_work_in_is_not_trained_in(
    api: KubernetesServer, tmp_path: Path, launcher: str
) -> None:
    base, workspace = make_model(tmp_path / "base"), workspace_in(tmp_path)
    own = (
        step_of(workspace, base) if launcher == "trainjob" else [*TRAIN, f"--workspace={workspace}"]
    )
    with alone(Workspace(workspace)):
        done = subprocess.run(
            [*own, f"--model={base}", *FAST, f"--launcher={launcher}"],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 75, done.stderr
    assert f"{workspace}/training/step.lock: another train step is at work" in done.stderr
    assert not api.created("trainjobs")
    assert not (workspace / "checkpoints").exists()


def test_a_folder_that_another_trainjob_may_be_at_work_in_gets_no_second(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    other = Started("two-1a2b3c4d", NAMESPACE, api.url)
    other.note(job[1].workspace)
    params = job[0].params
    with pytest.raises(ConfigError, match=r"TrainJob team/two-1a2b3c4d .*not seen to end"):
        trainjob.check(params, job[1])
    asking = replace(job[0], params=params.model_copy(update={"trainer_api": "auto"}))
    with pytest.raises(ConfigError, match=r"TrainJob team/two-1a2b3c4d .*not seen to end"):
        trainjob.describe(asking, job[1])
    Started(manifest.name(job[1]), NAMESPACE, api.url).note(job[1].workspace)
    trainjob.check(params, job[1])


@pytest.mark.parametrize(
    ("pod_is_over", "is_told_of"), [(True, False), (False, True)], ids=["ended", "saving"]
)
def test_a_failed_job_is_told_of_as_long_as_a_worker_may_write(
    api: KubernetesServer, job: tuple[Job, Run], pod_is_over: bool, is_told_of: bool
) -> None:
    trainer = Trainer(api, manifest.name(job[1]))
    pods = [f"{trainer.name}-node-0-{index}-abcde" for index in range(2)]
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make(2)
        for pod in pods[: 1 if pod_is_over else 2]:
            trainer.run(pod)
        if pod_is_over:
            api.delete("pods", pods[1], NAMESPACE)
        trainer.end(pods[0], 78, message="out of memory")
        trainer.status(condition("Failed", "True", "FailedJobs", "failed"), failed=1)
        with pytest.raises(StepError, match="FailedJobs"):
            step.result(60)
    assert note_in(job[1].workspace.root).exists() == is_told_of


def test_a_job_that_the_cluster_refused_is_not_told_of(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    api.fail("POST", "trainjobs", 422, body='{"kind": "Status", "message": "invalid"}')
    with pytest.raises(ConfigError, match="422"):
        trainjob.train(*job, PACE)
    assert not note_in(job[1].workspace.root).exists()


def test_a_name_that_another_runs_job_has_is_not_told_of_as_this_folders(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    name, labels = manifest.name(job[1]), {"app.kubernetes.io/instance": "two"}
    other = {"metadata": {"name": name, "labels": labels}, "spec": {"runtimeRef": {"name": "r"}}}
    api.create("trainjobs", other, NAMESPACE)
    with pytest.raises(ConfigError, match="belongs to another run"):
        trainjob.train(*job, PACE)
    assert not note_in(job[1].workspace.root).exists()


def test_a_failure_is_told_although_the_note_of_its_job_cannot_be_removed(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    folder = note_in(job[1].workspace.root).parent
    trainer = Trainer(api, manifest.name(job[1]))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make()
        folder.rename(folder.with_name("away"))
        folder.touch()  # nothing can be removed in it
        trainer.run(f"{trainer.name}-node-0-0-abcde")
        trainer.end(f"{trainer.name}-node-0-0-abcde", 65, message="the loss diverged")
        trainer.status(condition("Failed", "True", "FailedJobs", "failed"), failed=1)
        with pytest.raises(DataError, match="the loss diverged"):
            step.result(60)


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", '{"name": "one"}', '{"other": 1}'], ids=range(5)
)
def test_a_note_that_tells_no_trainjob_is_named_with_what_to_look_for(
    tmp_path: Path, content: str
) -> None:
    workspace = Workspace(tmp_path)
    workspace.started.parent.mkdir()
    workspace.started.write_text(content)
    with pytest.raises(ConfigError) as caught:
        refuse_another(workspace)
    assert f"{workspace.started}: does not tell" in str(caught.value)
    assert "kubectl get trainjobs" in str(caught.value)


def test_a_job_at_another_result_ends_before_its_checkpoints_are_forgotten(
    api: KubernetesServer, tmp_path: Path, started: list["subprocess.Popen[str]"]
) -> None:
    base, workspace = make_model(tmp_path / "base"), workspace_in(tmp_path)
    trainer = Trainer(
        api, manifest.name(Run(Bound.model_validate({"workspace": workspace, **bound()})))
    )
    step = start(workspace, base, started)
    trainer.submitted()
    trainer.make()
    trainer.run(f"{trainer.name}-node-0-0-abcde")
    step.kill()
    step = start(workspace, base, started, "--seed=9")
    assert step.stderr
    while ": deleted, " not in (line := step.stderr.readline()):
        assert line
    checkpoints = workspace / "checkpoints"
    for left in ("state-000000006", "model"):  # what the workers write until they are gone
        (checkpoints / left).mkdir()
    trainer.collect()
    trainer.submitted()
    assert {path.name for path in checkpoints.iterdir()} == {"fingerprint", "job.json"}


def test_workers_that_outlive_their_job_end_before_its_checkpoints_are_forgotten(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    trainer = Trainer(api, manifest.name(job[1]))
    marks = {f"{JOBSET}/jobset-name": trainer.name, f"{JOBSET}/replicatedjob-name": "node"}
    api.create("pods", {"metadata": {"name": "old", "labels": marks}}, NAMESPACE)
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.end_other, job[0].params, job[1], PACE)
        # It is not there at the first look, nor are its pods gone at the next.
        api.wait_for(lambda: api.asked("GET", "/pods") >= 3)
        assert not step.done()
        api.delete("pods", "old", NAMESPACE)
        step.result(60)


@pytest.mark.parametrize(
    ("wrong", "arguments", "code", "told"),
    [
        ("", ["--volume-claim="], 64, "--volume-claim is empty"),
        ("", ["--worker-image="], 64, "--worker-image is empty"),
        ("", ["--runtime=other"], 78, "there are: ClusterTrainingRuntime training-hub"),
        ("KUBERNETES_AUTH_TOKEN", [], 77, "renew KUBERNETES_AUTH_TOKEN"),
        ("", [], 0, "check passed"),
    ],
)
def test_a_check_finds_what_a_trainjob_would_lack(
    api: KubernetesServer, tmp_path: Path, wrong: str, arguments: list[str], code: int, told: str
) -> None:
    done = subprocess.run(
        [*step_of(tmp_path / "run", make_model(tmp_path / "base")), *arguments, "--check"],
        env=os.environ | ({wrong: "expired"} if wrong else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert not api.created("trainjobs")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["KUBERNETES_SERVER_URL", "KUBERNETES_AUTH_TOKEN"])
def test_half_of_the_clusters_secret_is_not_taken_for_no_cluster(
    api: KubernetesServer, tmp_path: Path, missing: str
) -> None:
    assert api.url
    done = subprocess.run(
        [*TRAIN, f"--workspace={tmp_path}", f"--model={tmp_path}", "--check"],
        env=os.environ | {missing: ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78, done.stderr
    assert f"secret 'kubernetes-credentials': {missing} missing or empty" in done.stderr


@pytest.mark.parametrize(
    ("shape", "field"), [("v2.1", "podTemplateOverrides"), ("v2.2", "runtimePatches")]
)
def test_a_dry_run_prints_the_trainjob_of_a_shape_without_a_cluster(
    tmp_path: Path, shape: str, field: str
) -> None:
    workspace = workspace_in(tmp_path)
    done = subprocess.run(
        [*step_of(workspace, make_model(tmp_path / "base")), f"--trainer-api={shape}", "--dry-run"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert printed["kind"] == "TrainJob"
    assert field in printed["spec"]
    assert "&id" not in done.stdout
    # What takes the fetched model is told of, and not shown as if it were empty.
    assert "annotations sft.fingerprint" in done.stdout.splitlines()[0]
    assert not printed["metadata"].get("annotations")
    assert printed["spec"]["trainer"]["image"] == bound()["worker_image"]
    assert "rows" in done.stderr


def test_a_dry_run_without_a_cluster_is_told_how_to_do_without_one(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    done = subprocess.run(
        [*step_of(workspace, make_model(tmp_path / "base")), "--trainer-api=auto", "--dry-run"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78, done.stderr
    assert "--cluster-auth kubeconfig" in done.stderr
    assert "--trainer-api v2.2" in done.stderr


def test_a_complete_job_without_a_model_is_an_error_and_goes(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    trainer = Trainer(api, manifest.name(job[1]))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make()
        train_to(job[0].checkpoints, steps=2, rows=16)
        trainer.complete()
        with pytest.raises(StepError, match="saved no model"):
            step.result(60)
    trainer.collect()
    assert not trainer.has_job()


def test_a_volume_that_is_not_well_for_a_while_ends_nothing(
    api: KubernetesServer, job: tuple[Job, Run]
) -> None:
    trainer, checkpoints = Trainer(api, manifest.name(job[1])), job[0].checkpoints
    for name in (METRICS, "worker-log.json"):
        (checkpoints / name).mkdir()  # can be neither read nor written
    pod = f"{trainer.name}-node-0-0-abcde"
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make()
        trainer.run(pod)
        trainer.log(pod, "a line")
        api.wait_for(lambda: api.asked("GET", "follow=true"))
        seen = api.asked("GET", "watch=true")
        api.wait_for(lambda: step.done() or api.asked("GET", "watch=true") > seen + 1)
        (checkpoints / METRICS).rmdir()
        train_to(checkpoints, steps=2, rows=16)
        job[0].model.mkdir()
        trainer.complete()
        assert len(step.result(60)) == 2


def test_a_job_that_may_not_be_deleted_is_told_with_the_command_that_does(
    api: KubernetesServer, job: tuple[Job, Run], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(api, manifest.name(job[1]))
    api.forbidden.add(("delete", "trainjobs"))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make()
        train_to(job[0].checkpoints, steps=2, rows=16)
        job[0].model.mkdir()
        trainer.complete()
        points = step.result(60)
    assert [point.loss for point in points] == [1.0, 0.5]
    assert len(job[0].curve.read_text().splitlines()) == 2
    assert f"kubectl delete trainjob {trainer.name} -n team" in caplog.text


@pytest.mark.parametrize("status", [503, 404, 200])
def test_a_job_is_deleted_although_the_cluster_is_away_when_its_results_are_in_hand(
    api: KubernetesServer, job: tuple[Job, Run], status: int
) -> None:
    trainer = Trainer(api, manifest.name(job[1]))
    api.fail("DELETE", "/trainjobs", status, times=2)
    with ThreadPoolExecutor() as pool:
        step = pool.submit(trainjob.train, *job, PACE)
        trainer.submitted()
        trainer.make()
        train_to(job[0].checkpoints, steps=2, rows=16)
        job[0].model.mkdir()
        trainer.complete()
        assert len(step.result(60)) == 2
    assert trainer.job["metadata"]["deletionTimestamp"]
    trainer.collect()
    assert not trainer.has_job()


def test_a_step_that_waits_to_delete_its_job_ends_when_it_is_stopped(
    api: KubernetesServer, tmp_path: Path, started: list["subprocess.Popen[str]"]
) -> None:
    base, workspace = make_model(tmp_path / "base"), workspace_in(tmp_path)
    run = Run(Bound.model_validate({"workspace": workspace, **bound()}))
    trainer = Trainer(api, manifest.name(run))
    api.fail("DELETE", "/trainjobs", 503, 1, **{"Retry-After": "600"})
    step = start(workspace, base, started)
    trainer.submitted()
    trainer.make()
    train_to(workspace / "checkpoints", steps=6, rows=48)
    shutil.copytree(base, workspace / "checkpoints" / "model")
    trainer.complete()
    assert step.stderr
    assert any("asking again until it answers" in line for line in step.stderr)
    step.send_signal(signal.SIGTERM)
    told = step.communicate(timeout=60)[1]
    assert step.returncode == 143, told
    assert note_in(workspace).exists()
    step = start(workspace, base, started)
    told = step.communicate(timeout=120)[1]
    assert step.returncode == 0, told
    assert trainer.job["metadata"]["deletionTimestamp"]
    assert not note_in(workspace).exists()


def test_results_that_are_in_hand_need_no_job(api: KubernetesServer, job: tuple[Job, Run]) -> None:
    train_to(job[0].checkpoints, steps=2, rows=16)
    job[0].model.mkdir()
    assert len(trainjob.train(*job, PACE)) == 2
    assert not api.created("trainjobs")
