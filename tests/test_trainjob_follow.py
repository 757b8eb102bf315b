"""A TrainJob followed to its end, through what clusters do meanwhile; and what is left of it then."""

import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, CredentialsError, DataError, StepError, TransientError
from steps.train.params import TrainParams
from steps.train.trainjob import follow, objects
from steps.train.trainjob.cluster import Cluster, connect
from steps.train.trainjob.failure import Stop, cause
from steps.train.trainjob.follow import Limits
from steps.train.trainjob.manifest import Object
from steps.train.trainjob.patience import Pace
from steps.train.trainjob.worker_log import Lines
from tests.servers.kubernetes import KubernetesServer
from tests.trainer import JOBSET, NAMESPACE, Trainer, condition, kinds

NAME, TOKEN = "one-1a2b3c4d", "a-token"
PACE = Pace(
    look=1,
    first_wait=0.02,
    longest_wait=0.1,
    reminder=0.0,
    submission=2.0,
    deletion=30.0,
    creation=0.0,
)
LABELS = {"app.kubernetes.io/component": "worker", "app.kubernetes.io/instance": "one"}


class Heard(logging.Handler):
    """What was logged, and by which level; whoever waits for a line is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.changed:
            self.lines.append(f"{record.levelname} {record.getMessage()}")
            self.changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until a line with the text was logged, so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(text) >= times, 30), self.lines

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    @property
    def worker(self) -> list[str]:
        """The lines of node 0."""
        return [line.split(" | ", 1)[1] for line in self.lines if "node 0 | " in line]


@dataclass
class Here:
    """A cluster, a step that follows a TrainJob there, and what it says."""

    api: KubernetesServer
    trainer: Trainer
    cluster: Cluster
    folder: Path
    heard: Heard
    pool: ThreadPoolExecutor
    shown: list[None] = field(default_factory=list)

    def follow(
        self, manifest: Object | None = None, pace: Pace = PACE, running: float | None = None
    ) -> "Future[Object]":
        """The step, while other things happen."""
        return self.pool.submit(
            follow.run,
            self.cluster,
            manifest or made_of(),
            limits=Limits(memory="64Gi", running=running),
            bookmark=self.folder / "bookmark.json",
            note=lambda: None,
            show=lambda: self.shown.append(None),
            pace=pace,
        )

    def running(self, nodes: int = 1) -> tuple["Future[Object]", list[str]]:
        """A step that follows a job whose pods run."""
        step = self.follow()
        self.trainer.submitted()
        self.trainer.make(nodes)
        pods = [f"{NAME}-node-0-{index}-abcde" for index in range(nodes)]
        for pod in pods:
            self.trainer.run(pod)
        self.heard.wait_for("runs on")
        return step, pods


def made_of(**changes: Any) -> Object:
    """A TrainJob to be sent."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": NAME,
            "labels": LABELS,
            "annotations": {"sft.fingerprint": "f"},
        },
        "spec": {"runtimeRef": {"name": "sft"}, "trainer": {"numNodes": 1, **changes}},
    }


@pytest.fixture(params=["v2.1.0", "v2.3.0"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    yield from cluster_with("v2.3.0", tmp_path, monkeypatch)


@pytest.fixture
def each(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """The same with each Trainer."""
    yield from cluster_with(version, tmp_path, monkeypatch)


def cluster_with(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    heard, logger = Heard(), logging.getLogger("steps")
    level = logger.level
    logger.setLevel("INFO")
    logger.addHandler(heard)
    options: Any = {"kinds": kinds(version), "namespaces": (NAMESPACE,), "token": TOKEN}
    with KubernetesServer(**options) as api, ThreadPoolExecutor() as pool:
        monkeypatch.setenv("KUBERNETES_SERVER_URL", api.url)
        monkeypatch.setenv("KUBERNETES_AUTH_TOKEN", TOKEN)
        found = Here(
            api, Trainer(api, NAME), connect(TrainParams(), NAMESPACE), folder, heard, pool
        )
        try:
            yield found
        finally:
            # A step that a failed test has left would wait for ever.
            api.token = "another"
            api.cut()
    logger.removeHandler(heard)
    logger.setLevel(level)


def streaming(here: Here, times: int) -> None:
    """Wait until the log was followed so often."""
    here.api.wait_for(lambda: here.api.asked("GET", "follow=true") >= times)


def end_of(step: "Future[Object]") -> StepError:
    """The error that the step ends with."""
    with pytest.raises(StepError) as caught:
        step.result(60)
    return caught.value


def test_a_training_is_submitted_and_followed_to_its_end(each: Here) -> None:
    step = each.follow()
    each.trainer.submitted()
    each.trainer.make(nodes=2)
    each.heard.wait_for("is starting")
    first, second = (f"{NAME}-node-0-{index}-abcde" for index in range(2))
    each.trainer.run(first)
    each.trainer.run(second)
    each.heard.wait_for("runs on 2 pod(s)")
    each.trainer.log(first, "one", "", "two")
    each.trainer.log(second, "of another node")
    each.trainer.end(first, 0)
    each.trainer.end(second, 0)
    each.trainer.complete()
    job = step.result(60)
    assert job["metadata"]["name"] == NAME
    assert each.heard.worker == ["one", "two"]
    assert each.shown
    assert each.heard.lines[0] == f"INFO submitted TrainJob team/{NAME}"
    assert each.heard.lines[-1] == f"INFO TrainJob team/{NAME} is complete"
    # The job stays until its results are in hand.
    assert each.trainer.has_job()


def test_what_the_server_does_not_know_of_a_job_is_refused(here: Here) -> None:
    if not kinds()[0].schema:
        pytest.skip("SFT_SCHEMAS names no folder with the definitions of Kubeflow Trainer")
    manifest = made_of()
    manifest["spec"]["podTemplateOverrides"] = []
    error = end_of(here.follow(manifest))
    assert isinstance(error, ConfigError)
    assert "podTemplateOverrides" in str(error)
    assert not here.trainer.has_job()


def test_an_api_server_that_is_gone_for_a_while_is_waited_for(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.log(pod, "before")
    here.heard.wait_for("before")
    here.api.go_down()
    here.heard.wait_for("asking again until it answers")
    here.heard.wait_for("no answer for")
    here.trainer.log(pod, "meanwhile")
    here.api.come_back()
    here.heard.wait_for("meanwhile")
    assert here.heard.count("the cluster answers again") == 1
    here.trainer.log(pod, "after")
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == ["before", "meanwhile", "after"]


def test_a_watch_that_has_expired_is_opened_anew(here: Here) -> None:
    step, _ = here.running()
    here.api.wait_for(lambda: here.api.asked("GET", "watch=true"))
    told = here.heard.count("WARNING")
    here.api.fail("GET", "watch=true", 410)
    known = here.api.asked("GET", "watch=true")
    here.api.forget()
    here.api.wait_for(lambda: here.api.asked("GET", "watch=true") >= known + 2)
    here.trainer.complete()
    step.result(60)
    assert here.heard.count("WARNING") == told


def test_a_server_that_is_asked_too_much_is_left_alone_for_as_long_as_it_says(here: Here) -> None:
    overloads = [here.api.overload(*each, 1) for each in (("POST", "/trainjobs"), ("GET", "/pods"))]
    step, _ = here.running()
    here.trainer.complete()
    step.result(60)
    # Whoever asks earlier than told is refused again.
    assert [overload.refused for overload in overloads] == [1, 1]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (2 << 20, "too large (500): etcdserver: request is too large"),
        (4 << 20, "too large (413): Request entity too large: limit is 3145728"),
    ],
)
def test_a_job_that_is_too_large_is_sent_once_and_told_with_what_makes_it_so(
    here: Here, size: int, told: str
) -> None:
    error = end_of(here.follow(made_of(env=[{"name": "LARGE", "value": "x" * size}])))
    assert isinstance(error, ConfigError)
    assert told in str(error)
    assert f"of them --env-vars and the keys of train-env {size + 32:,}, --annotations" in str(
        error
    )
    assert here.api.asked("POST", "/trainjobs") == 1
    assert not here.trainer.has_job()


def test_a_submission_whose_answer_is_lost_makes_no_second_job(here: Here) -> None:
    here.api.lose("POST", "/trainjobs")
    step, _ = here.running()
    here.trainer.complete()
    step.result(60)
    assert here.api.created("trainjobs") == 1


def test_a_cluster_that_does_not_answer_at_first_is_given_up_after_a_while(here: Here) -> None:
    here.api.go_down()
    assert isinstance(end_of(here.follow()), TransientError)
    here.api.come_back()
    assert not here.trainer.has_job()


@pytest.mark.parametrize("status", [401, 403])
def test_a_credential_that_ends_leaves_the_job_to_the_next_attempt(here: Here, status: int) -> None:
    step, (pod,) = here.running()
    here.trainer.log(pod, "one")
    here.heard.wait_for("| one")
    if status == 401:
        here.api.token = "renewed"
    else:
        here.api.forbidden |= {("list", "trainjobs"), ("watch", "trainjobs")}
    here.api.cut()
    error = end_of(step)
    assert isinstance(error, CredentialsError)
    assert "kubernetes-credentials" in str(error)
    assert "KUBERNETES_AUTH_TOKEN" in str(error)
    assert "the next attempt attaches" in str(error)
    assert here.trainer.has_job()
    here.api.token, here.api.forbidden = TOKEN, set()
    step = here.follow()
    here.heard.wait_for("attached to it")
    here.trainer.log(pod, "two")
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == ["one", "two"]
    assert here.api.created("trainjobs") == 1


PAGE, OTHER = "<html>out of order</html>", '{"error": "no upstream"}'
IN_BETWEEN = [
    *((status, PAGE) for status in (200, 302, 400, 403, 404, 408, 502, 503, 504)),
    *((status, OTHER) for status in (200, 400, 403, 404, 502)),
    (404, "404 page not found\n"),
]
"""What proxies and load balancers answer in place of an API server."""


@pytest.mark.parametrize(("status", "body"), IN_BETWEEN)
def test_what_is_answered_in_the_place_of_a_cluster_ends_no_training(
    here: Here, status: int, body: str
) -> None:
    here.api.fail("POST", "/trainjobs", status, body=body)
    here.api.fail("GET", "/trainjobs?fieldSelector", status, body=body)
    step, (pod,) = here.running()
    here.trainer.log(pod, "before")
    here.heard.wait_for("| before")
    for part in ("/trainjobs?fieldSelector", "/trainjobs?watch", "/pods?", "/log?"):
        here.api.fail("GET", part, status, 2, body)
    logs = here.api.asked("GET", "/log?")
    here.api.cut()
    here.api.wait_for(lambda: here.api.asked("GET", "/log?") >= logs + 3)
    here.trainer.log(pod, "after")
    here.heard.wait_for("the cluster answers again")
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == ["before", "after"]
    assert here.api.created("trainjobs") == 1


def test_a_job_in_a_queue_that_cannot_be_read_is_followed_all_the_same(here: Here) -> None:
    here.api.fail("GET", "/workloads", 200, 1000)
    here.api.fail("GET", "/workloads", 200, 1000, OTHER)
    step = here.follow()
    here.trainer.submitted()
    here.trainer.suspend(suspended=True)
    here.heard.wait_for("suspended: not by Kueue")
    here.trainer.suspend(suspended=False)
    here.trainer.complete()
    step.result(60)


def test_a_job_that_is_deleted_by_hand_is_made_anew_by_the_next_attempt(here: Here) -> None:
    step, _ = here.running()
    here.api.delete("trainjobs", NAME, NAMESPACE)
    error = end_of(step)
    assert isinstance(error, TransientError)
    assert "was deleted while it ran" in str(error)
    step, _ = here.running()
    here.trainer.complete()
    step.result(60)


def test_a_job_whose_workers_have_ended_is_not_told_to_start(here: Here) -> None:
    step, (pod,) = here.running()
    begun = here.heard.count("is starting")
    here.trainer.end(pod, 0)
    here.heard.wait_for("has no worker left that runs")
    here.trainer.complete()
    step.result(60)
    assert here.heard.count("is starting") == begun


def test_a_job_that_no_controller_sees_is_told(here: Here) -> None:
    step = here.follow()
    here.trainer.submitted()
    here.heard.wait_for("nothing has been made of it yet: does the controller of Kubeflow Trainer")
    here.trainer.make()
    here.trainer.complete()
    step.result(60)


def test_a_complete_job_is_collected_without_another(here: Here) -> None:
    step, _ = here.running()
    here.trainer.complete()
    step.result(60)
    here.follow().result(60)
    assert here.api.created("trainjobs") == 1


def test_a_failed_job_is_deleted_with_its_pods_before_another_is_made(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.end(pod, 75, message="the hub does not answer")
    here.trainer.fail()
    assert isinstance(end_of(step), TransientError)
    step = here.follow()
    here.heard.wait_for("deleted, to be made anew")
    here.trainer.collect()
    here.trainer.submitted()
    assert not here.api.all("pods", NAMESPACE)
    here.trainer.make()
    here.trainer.complete()
    step.result(60)
    assert here.api.created("trainjobs") == 2


def test_a_deleted_job_that_does_not_go_is_told_with_its_pods(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.end(pod, 75)
    here.trainer.fail()
    end_of(step)
    error = end_of(here.follow(pace=Pace(look=1, first_wait=0.02, deletion=0.0)))
    assert isinstance(error, TransientError)
    assert f"pod {pod}" in str(error)


def test_workers_that_outlive_their_job_end_before_another_is_made(here: Here) -> None:
    marks = {f"{JOBSET}/jobset-name": NAME, f"{JOBSET}/replicatedjob-name": "node"}
    here.api.create("pods", {"metadata": {"name": "old", "labels": marks}}, NAMESPACE)
    step = here.follow()
    here.heard.wait_for("waiting for pod old to end")
    assert here.api.created("trainjobs") == 0
    here.api.delete("pods", "old", NAMESPACE)
    here.trainer.submitted()
    here.trainer.make()
    here.trainer.complete()
    step.result(60)


def test_a_job_that_another_has_taken_the_place_of_is_gone(here: Here) -> None:
    here.api.create("trainjobs", made_of(), NAMESPACE)
    objects.delete(here.cluster, {"metadata": {"name": NAME, "uid": "of-the-one-before"}})
    assert here.trainer.has_job()


def test_a_job_of_other_parameters_is_made_anew(here: Here) -> None:
    step, _ = here.running()
    here.api.token = "renewed"
    here.api.cut()
    end_of(step)
    here.api.token = TOKEN
    step = here.follow(made_of(numNodes=2))
    here.heard.wait_for("was made for other parameters")
    here.trainer.collect()
    here.trainer.submitted()
    assert here.trainer.job["spec"]["trainer"]["numNodes"] == 2
    here.trainer.make(2)
    here.trainer.complete()
    step.result(60)


def test_a_job_of_another_run_is_refused_and_stays(here: Here) -> None:
    other = made_of()
    other["metadata"]["labels"] = {**LABELS, "app.kubernetes.io/instance": "two"}
    here.api.create("trainjobs", other, NAMESPACE)
    error = end_of(here.follow())
    assert isinstance(error, ConfigError)
    assert "belongs to another run (app.kubernetes.io/instance=two)" in str(error)
    assert not here.api.asked("DELETE", "")
    assert here.trainer.has_job()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (64, "UsageError", "--tokens"),
        (65, "DataError", "diverged"),
        (74, "VolumeError", "is full"),
        (75, "TransientError", "does not answer"),
        (77, "CredentialsError", "hf-token"),
        (78, "ConfigError", "the GPU's memory"),
        (143, "TransientError", "terminated"),
        (137, "TransientError", ""),
        (1, "StepError", "a bug"),
    ],
)
def test_a_worker_that_fails_fails_the_step_as_if_it_had_run_here(
    here: Here, code: int, error: str, words: str
) -> None:
    step, (first, second) = here.running(nodes=2)
    here.trainer.log(first, "step 1", "the end is near")
    here.trainer.log(second, "what went before", "what went wrong")
    here.trainer.end(second, code, message=words)
    here.heard.wait_for(f"ended with exit code {code}")
    here.trainer.fail()
    caught = end_of(step)
    assert type(caught).__name__ == error
    assert f"node 1 (pod {second}) ended with exit code {code}" in str(caught)
    assert words in str(caught)
    assert "FailedJobs: jobset failed due to one or more job failures" in str(caught)
    assert "\n  what went before\n  what went wrong" in str(caught)
    assert "goes on without this step" not in str(caught)
    # It holds no GPU, and people may look at it.
    assert here.trainer.has_job()


def test_a_worker_out_of_memory_is_told_with_what_to_raise(here: Here) -> None:
    step, (first, second) = here.running(nodes=2)
    here.trainer.log(first, "loading")
    here.heard.wait_for("loading")
    here.trainer.end(first, 137, reason="OOMKilled")
    here.trainer.end(second, 1, message="NCCL: connection closed")
    here.trainer.fail()
    error = end_of(step)
    assert isinstance(error, ConfigError)
    assert "the memory of 64Gi was not enough: raise --memory" in str(error)
    assert "node 0" in str(error)
    assert "\n  loading" in str(error)


def test_nodes_that_waited_for_the_one_that_is_gone_are_not_the_cause() -> None:
    at = datetime.now(UTC)
    gone = Stop("a", 3, at, 137, "OOMKilled", "")
    # INSTRUCTLAB_NCCL_TIMEOUT_MS is 10 minutes by default.
    waited = Stop("b", 0, at + timedelta(minutes=11), 1, "Error", "collective operation timeout")
    assert cause([waited, gone]) == gone
    restarted = Stop("a", 3, at - timedelta(hours=9), 65, "Error", "of an attempt before")
    assert cause([waited, restarted, gone]) == gone


def test_an_evicted_worker_is_tried_again_later(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.evict(pod, "The node was low on resource: ephemeral-storage.")
    here.trainer.fail()
    error = end_of(step)
    assert isinstance(error, TransientError)
    assert "low on resource" in str(error)


def test_a_failure_whose_pods_are_gone_is_told_by_what_was_seen_of_them(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.restart(pod, 65)
    here.heard.wait_for("ended with exit code 65")
    here.api.delete("pods", pod, NAMESPACE)
    here.trainer.fail()
    assert isinstance(end_of(step), DataError)


def test_a_job_past_the_trainers_deadline_is_deleted(here: Here) -> None:
    step, _ = here.running()
    here.trainer.fail("DeadlineExceeded")
    error = end_of(step)
    assert isinstance(error, ConfigError)
    assert "raise the deadline" in str(error)
    assert here.api.asked("DELETE", f"/trainjobs/{NAME}") == 1


def test_waiting_does_not_count_for_the_deadline(here: Here) -> None:
    step = here.follow(running=0.0)
    here.trainer.submitted()
    here.trainer.suspend(suspended=True)
    here.heard.wait_for("is suspended")
    here.trainer.suspend(suspended=False)
    here.trainer.make()
    here.trainer.cannot_schedule(f"{NAME}-node-0-0-abcde", "0/3 nodes are available")
    here.heard.wait_for("0/3 nodes")
    assert not step.done()
    here.trainer.run(f"{NAME}-node-0-0-abcde")
    error = end_of(step)
    assert isinstance(error, ConfigError)
    assert "past its deadline" in str(error)
    here.trainer.collect()
    assert not here.trainer.has_job()


def test_a_job_in_a_queue_is_told_to_wait_and_then_runs(here: Here) -> None:
    manifest = made_of()
    manifest["metadata"]["labels"] = LABELS | {"kueue.x-k8s.io/queue-name": "gpus"}
    step = here.follow(manifest)
    here.trainer.submitted()
    here.trainer.suspend(suspended=True)
    uid = here.trainer.job["metadata"]["uid"]
    workload = {
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": uid}},
        "status": {
            "conditions": [
                condition(
                    "QuotaReserved", "False", "Pending", "couldn't assign flavors: 8 more needed"
                )
            ]
        },
    }
    here.api.create("workloads", workload, NAMESPACE)
    here.heard.wait_for("waits in the queue gpus: Pending: couldn't assign flavors: 8 more needed")
    admitted = {"status": {"conditions": [condition("Admitted", "True")]}}
    here.api.patch("workloads", "w", admitted, NAMESPACE)
    here.heard.wait_for("Kueue has admitted it, and the TrainJob is still suspended")
    # The condition Suspended stays, with status False, as the newest there is.
    here.trainer.suspend(suspended=False)
    here.trainer.make()
    here.trainer.run(f"{NAME}-node-0-0-abcde")
    here.heard.wait_for("runs on 1 pod(s)")
    here.trainer.suspend(suspended=True)
    here.heard.wait_for("is suspended: it waits for its turn", 2)
    here.trainer.suspend(suspended=False)
    here.heard.wait_for("runs on 1 pod(s)", 2)
    here.trainer.complete()
    step.result(60)


def test_a_job_that_someone_suspended_says_who_must_let_it_go(here: Here) -> None:
    step = here.follow()
    here.trainer.submitted()
    here.trainer.suspend(suspended=True)
    here.heard.wait_for("must set spec.suspend to false")
    here.trainer.suspend(suspended=False)
    here.trainer.complete()
    step.result(60)


def test_why_a_job_does_not_start_is_told_once_each(here: Here) -> None:
    step = here.follow()
    here.trainer.submitted()
    here.trainer.make_job()
    quota = 'Error creating: pods "{}" is forbidden: exceeded quota: gpus, used: {}, limited: 8'
    for suffix, used in (("abcde", 7), ("fghij", 8)):
        pod = f"{NAME}-node-0-0-{suffix}"
        here.trainer.warn("Job", f"{NAME}-node-0", "FailedCreate", quota.format(pod, used))
    here.heard.wait_for("exceeded quota")
    here.trainer.pod(0)
    pod = f"{NAME}-node-0-0-abcde"
    here.trainer.cannot_schedule(pod, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    here.heard.wait_for("3 Insufficient nvidia.com/gpu")
    here.trainer.cannot_schedule(pod, "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
    here.trainer.warn("Pod", pod, "FailedMount", 'configmap "ca" not found')
    here.heard.wait_for('FailedMount: configmap "ca" not found')
    here.trainer.cannot_start(pod, "ImagePullBackOff", 'Back-off pulling image "x"')
    here.heard.wait_for('ImagePullBackOff: Back-off pulling image "x"')
    here.trainer.run(pod)
    here.trainer.complete()
    step.result(60)
    for text in ("exceeded quota", "Insufficient", "FailedMount", "ImagePullBackOff"):
        assert here.heard.count(text) == 1


def test_what_the_running_pods_wait_for_is_told_too(here: Here) -> None:
    step, (pod,) = here.running()
    other = here.trainer.pod(1)
    here.trainer.cannot_schedule(other, "0/3 nodes are available")
    here.trainer.log(pod, "waiting for the others")
    here.heard.wait_for("0/3 nodes are available")
    here.trainer.run(other)
    here.trainer.complete()
    step.result(60)


def test_a_job_of_which_nothing_can_be_made_is_an_error_and_goes(here: Here) -> None:
    step = here.follow()
    here.trainer.submitted()
    message = "TrainJob resources reconciliation failed: JobSet name is too long"
    here.trainer.warn("TrainJob", NAME, "TrainJobResourcesCreationFailed", message)
    error = end_of(step)
    assert isinstance(error, ConfigError)
    assert "JobSet name is too long" in str(error)
    assert here.heard.count("JobSet name is too long") == 1
    here.trainer.collect()
    assert not here.trainer.has_job()


def test_a_runtime_that_the_trainer_does_not_support_is_an_error_of_the_set_up(here: Here) -> None:
    step = here.follow()
    here.trainer.submitted()
    here.trainer.refuse_runtime("TrainingRuntime.trainer.kubeflow.org")
    error = end_of(step)
    assert isinstance(error, ConfigError)
    assert "TrainingRuntimeNotSupported: unsupported runtime: TrainingRuntime.tr" in str(error)
    assert "choose another --runtime" in str(error)


def test_warnings_about_a_job_of_that_name_before_are_not_told(here: Here) -> None:
    message = "invalid runtime snapshot"
    old = {
        "metadata": {"name": "old"},
        "involvedObject": {"kind": "TrainJob", "name": NAME},
        "type": "Warning",
        "reason": "TrainJobResourcesCreationFailed",
        "message": message,
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    here.api.create("events", old, NAMESPACE)
    step = here.follow()
    here.trainer.submitted()
    here.trainer.warn("JobSet", NAME, "FailedCreate", "something of now")
    here.heard.wait_for("something of now")
    here.trainer.make()
    here.trainer.complete()
    step.result(60)
    assert here.heard.count(message) == 0


def test_without_rights_on_pods_and_events_the_job_is_followed_all_the_same(here: Here) -> None:
    here.api.forbidden |= {("list", "pods"), ("list", "events"), ("list", "workloads")}
    step = here.follow()
    here.trainer.submitted()
    here.trainer.make()
    here.heard.wait_for('cannot list resource "events"')
    here.trainer.run(f"{NAME}-node-0-0-abcde")
    here.heard.wait_for(" runs")
    here.trainer.fail()
    error = end_of(step)
    assert type(error) is StepError
    assert "its pods are gone or may not be read" in str(error)
    assert here.heard.count("less is told of why a job waits or fails") == 2
    assert here.heard.count("workers' log is not shown") == 1


def test_lines_are_told_once_each_over_connections_that_break(here: Here) -> None:
    step, (pod,) = here.running()
    begun = datetime.now(UTC).replace(microsecond=0)
    for second in range(5):
        for line in ("same", "same", f"line {second}"):
            here.api.log(pod, f"{line}\n", begun + timedelta(seconds=second), NAMESPACE)
        here.heard.wait_for(f"| line {second}")
        here.api.log(pod, f"half {second} ", begun + timedelta(seconds=second), NAMESPACE)
        streams = here.api.asked("GET", "follow=true")
        here.api.cut()
        streaming(here, streams + 1)
        here.api.log(pod, "whole\n", begun + timedelta(seconds=second), NAMESPACE)
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == [
        line
        for second in range(5)
        for line in ("same", "same", f"line {second}", f"half {second} whole")
    ]
    assert here.api.asked("GET", "sinceTime=") >= 4


@pytest.mark.parametrize("status", [401, 503])
def test_a_job_that_ends_while_its_log_cannot_be_read_has_its_last_lines_told(
    here: Here, status: int
) -> None:
    here.api.fail("GET", "/log?", status, 1, **{"Retry-After": "600"})
    step, (pod,) = here.running()
    here.api.wait_for(lambda: here.api.asked("GET", "/log?"))
    here.trainer.log(pod, "the last")
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == ["the last"]


def test_lines_are_told_once_each_over_restarts_and_new_pods(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.log(pod, "first")
    here.heard.wait_for("| first")
    # The connection is lost, and nobody sees the container's last lines before the next one runs.
    here.api.fail("GET", "/log", 503, times=3)
    here.api.cut()
    here.trainer.log(pod, "last words")
    here.trainer.restart(pod, 1)
    here.trainer.log(pod, "second")
    here.heard.wait_for("| second")
    here.trainer.evict(pod, "low on memory")
    new = here.trainer.pod(0, "fghij")
    here.trainer.run(new)
    # Its node's clock is behind.
    earlier = datetime.now(UTC) - timedelta(minutes=1)
    here.api.log(new, "third\n", earlier, NAMESPACE)
    here.heard.wait_for("| third")
    here.trainer.end(new, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == ["first", "last words", "second", "third"]


def test_long_lines_cut_letters_and_bars_come_out_whole(here: Here) -> None:
    step, (pod,) = here.running()
    at = datetime.now(UTC)
    long = "x" * 40_000
    for piece in (long[:16384], long[16384:32768], long[32768:] + "\n"):
        here.api.log(pod, piece, at, NAMESPACE)
    text = "größe 日本\n".encode()
    for place in range(len(text)):
        here.api.log(pod, text[place : place + 1], at, NAMESPACE)
    bars = "".join(f"\r{percent:3}%|{'#' * 1000}" for percent in range(101))
    here.api.log(pod, f"{bars}\n".replace("#", ""), at, NAMESPACE)
    here.api.log(pod, f"{bars}\r\n", at, NAMESPACE)
    here.api.log(pod, "2026-01-01T00:00:00Z WARNING train: of our own\n", at, NAMESPACE)
    here.api.log(pod, "2026-01-01T00:00:10Z INFO train: training: 1 of 2 steps\n", at, NAMESPACE)
    here.api.log(pod, "without an end", at, NAMESPACE)
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert here.heard.worker == [
        long,
        "größe 日本",
        "100%|",
        f"100%|{'#' * 1000}",
        "of our own",
        "without an end",
    ]
    assert "WARNING node 0 | of our own" in here.heard.lines


def test_what_the_kubelet_says_at_each_look_is_told_once() -> None:
    told: list[str] = []
    lines, words = Lines(), b"failed to create fsnotify watcher: too many open files\n"
    for _ in range(3):
        lines.begin()
        told += lines.feed(words)
    assert told == [words.decode().strip()]


def test_times_of_lines_never_show(here: Here) -> None:
    step, (pod,) = here.running()
    here.trainer.log(pod, "a line")
    here.trainer.end(pod, 0)
    here.trainer.complete()
    step.result(60)
    assert not any(re.search(r"\d{4}-\d\d-\d\dT", line) for line in here.heard.lines)
