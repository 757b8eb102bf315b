"""Runs on a cluster after they were submitted: followed, listed, stopped, retried."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import SFT, Cluster, argo_server, cluster, node, nodes, template
from tests.servers.tls import self_signed


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with the pipeline's template."""
    with cluster(tmp_path) as found:
        found.api.create("workflowtemplates", template(), "team")
        yield found


def watching(here: Cluster, times: int = 1) -> None:
    """Wait until somebody watches the workflows, for that time in all."""
    here.api.wait_for(lambda: here.api.asked("GET", "watch=") >= times)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    shown, told = process.communicate(timeout=60)
    return process.returncode, shown, told


def test_a_run_is_followed_step_by_step_to_its_results(here: Cluster) -> None:
    process = here.start("submit", "--data-uri", "hf://a/b", "--run-name", "one", "--watch")
    watching(here)
    here.status(phase="Pending", message="Waiting for team/Mutex/gpus lock. Lock status: 0/1")
    data, train = "dataset-download", "train"
    here.status(phase="Running", message="", nodes=nodes(node(data, "Running", progress="0/1")))
    done = node(data, "Succeeded", progress="1/1")
    here.status(nodes=nodes(done, node(train, "Pending", "Unschedulable: 0/3 nodes")))
    for steps in (1, 2, 3, 49, 51):
        here.status(nodes=nodes(done, node(train, "Running", progress=f"{steps}/100")))
    outputs = [{"name": "train-model", "value": "pvc://sft-runs/runs/one/model"}]
    here.status(
        phase="Succeeded",
        nodes=nodes(done, node(train, "Succeeded"), node("summary", "Succeeded")),
        outputs={"parameters": [*outputs, {"name": "register-uri", "value": ""}]},
    )
    code, shown, told = end(process)
    assert code == 0, told
    assert shown.splitlines() == ["one", "train-model   pvc://sft-runs/runs/one/model"]
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert lines[1:] == [
        "sft one Pending",
        "sft one Pending: Waiting for team/Mutex/gpus lock. Lock status: 0/1",
        "sft one Running",
        "dataset Running",
        "dataset Succeeded",
        "train Pending: Unschedulable: 0/3 nodes",
        "train Running",
        "train 1/100",
        "train 49/100",
        "train 51/100",
        "sft one Succeeded",
        "train Succeeded",
        "summary Succeeded",
    ]


def test_the_exit_code_is_that_of_the_step_that_failed(here: Cluster) -> None:
    retry = node("train", "Running", kind="Retry")
    first = node("train", "Failed", "Error (exit code 75)", outputs={"exitCode": "75"})
    here.workflow(phase="Running", nodes=nodes(retry, first))
    process = here.start("watch", "one")
    watching(here)
    last = node("train", "Failed", "Error (exit code 65)", attempt=1, outputs={"exitCode": "65"})
    here.status(nodes=nodes(retry, first, node("train", "Running", attempt=1)))
    here.status(
        phase="Failed",
        message="child failed",
        nodes=nodes(retry | {"phase": "Failed"}, first, last, node("evaluate", "Omitted", kind="Skipped")),
    )  # fmt: skip
    code, _, told = end(process)
    assert code == 65, told
    assert "train     Retrying: attempt 1: Error (exit code 75)" in told
    assert "train     Failed: Error (exit code 65)" in told
    assert "evaluate  Omitted" in told
    assert "one Failed: child failed" in told


@pytest.mark.parametrize(
    ("phase", "outputs", "code"),
    [("Succeeded", {}, 0), ("Failed", {"exitCode": "143"}, 143), ("Error", {}, 1),
     ("Failed", {"exitCode": "0"}, 1)],
)  # fmt: skip
def test_a_run_that_is_over_is_told_at_once(
    here: Cluster, phase: str, outputs: dict[str, str], code: int
) -> None:
    here.workflow(phase=phase, nodes=nodes(node("evaluate", phase, outputs=outputs)))
    assert here.sft("watch", "one").returncode == code
    assert not here.api.asked("GET", "watch=")


def test_a_lost_connection_is_taken_up_again(here: Cluster) -> None:
    here.workflow(phase="Running")
    process = here.start("watch", "one")
    watching(here)
    here.api.fail("GET", "/workflows/one", 503)
    here.api.fail("GET", "/workflows/one", 0)
    here.api.cut()
    watching(here, 2)
    here.status(nodes=nodes(node("train", "Running")))
    here.status(phase="Succeeded")
    code, _, told = end(process)
    assert code == 0, told
    assert told.count("connection lost, the run goes on: ") == 1
    assert "the connection is back" in told
    assert "train     Running" in told


def test_changes_that_the_server_has_forgotten_are_looked_up(here: Cluster) -> None:
    here.workflow(phase="Running")
    process = here.start("watch", "one")
    watching(here)
    here.api.forget()
    watching(here, 2)
    here.status(phase="Succeeded")
    code, _, told = end(process)
    assert code == 0, told
    assert "connection lost" not in told


def test_a_run_that_is_deleted_meanwhile_is_told(here: Cluster) -> None:
    here.workflow(phase="Running")
    process = here.start("watch", "one")
    watching(here)
    here.api.delete("workflows", "one", "team")
    code, _, told = end(process)
    assert code == 65
    assert "one was deleted: nothing is left to follow" in told
    assert "the run goes on" not in told


def test_who_may_not_watch_is_told_that_the_run_goes_on(here: Cluster) -> None:
    here.workflow(phase="Running")
    here.api.forbidden = {("watch", "workflows")}
    done = here.sft("watch", "one")
    assert done.returncode == 77
    assert "not allowed to watch workflows/one in namespace team" in done.stderr
    assert "the run goes on; to follow it again: sft watch one -n team" in done.stderr


def test_ctrl_c_leaves_the_run_going(here: Cluster) -> None:
    here.workflow(phase="Running")
    process = here.start("watch", "one")
    watching(here)
    process.send_signal(signal.SIGINT)
    code, _, told = end(process)
    assert code == 130
    assert "the run goes on; to follow it again: sft watch one -n team" in told
    assert here.api.get("workflows", "one", "team")["status"] == {"phase": "Running"}


def test_a_terminal_shows_a_bar_for_each_step_at_work(here: Cluster) -> None:
    here.workflow(phase="Running", nodes=nodes(node("train", "Running", progress="37/100")))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*SFT, "watch", "one"], env=here.environment | {"TERM": "xterm"}, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while b"37%" not in seen:
            seen += os.read(ours, 4096)
        here.status(phase="Failed", nodes=nodes(node("train", "Failed", "OOMKilled")))
        with pytest.raises(OSError, match="Input/output error"):  # the other end is closed
            while chunk := os.read(ours, 4096):
                seen += chunk
    os.close(ours)
    assert process.returncode == 1
    assert b"Failed: OOMKilled" in seen
    assert b"37/100" not in seen


def test_an_argo_server_is_followed_and_taken_up_again_too(here: Cluster) -> None:
    here.workflow(phase="Running")
    with argo_server(here) as (_, way):
        process = here.start("watch", "one", **way)
        watching(here)
        here.status(nodes=nodes(node("train", "Running")))
        here.api.forget()
        watching(here, 2)
        here.api.fail("GET", "/workflows/one", 503)
        here.api.cut()
        watching(here, 3)
        here.status(
            phase="Failed", nodes=nodes(node("train", "Failed", outputs={"exitCode": "78"}))
        )
        code, _, told = end(process)
        assert code == 78, told
        assert "train     Running" in told
        assert told.count("connection lost") == 1
        here.workflow("two", phase="Running")
        process = here.start("watch", "two", **way)
        watching(here, 4)
        here.api.delete("workflows", "two", "team")
        code, _, told = end(process)
        assert code == 65, told
        assert "two was deleted" in told


def test_a_certificate_of_an_argo_server_is_checked_unless_told_otherwise(
    here: Cluster, tmp_path: Path
) -> None:
    here.workflow(phase="Running")
    context, pem = self_signed(tmp_path)
    (tmp_path / "ca.pem").write_text(pem)
    with argo_server(here, context) as (_, way):
        done = here.sft("watch", "one", **way)
        assert done.returncode == 78
        assert "the server's certificate is not trusted" in done.stderr
        assert not here.api.asked("GET", "/workflows")
        known = here.sft("list", **way, REQUESTS_CA_BUNDLE=str(tmp_path / "ca.pem"))
        assert known.returncode == 0, known.stderr
        process = here.start("watch", "one", **way, ARGO_INSECURE_SKIP_VERIFY="true")
        watching(here)
        here.status(phase="Succeeded")
        code, _, told = end(process)
        assert code == 0, told
        assert "Warning" not in told


@pytest.mark.parametrize("through", ["the Kubernetes API", "an Argo server"])
def test_runs_are_listed_the_newest_first(here: Cluster, through: str) -> None:
    empty = here.sft("list")
    assert empty.stdout == "no runs of sft-pipeline in namespace team\n"
    title = {"workflows.argoproj.io/title": "Fine-tune org/model"}
    times = {"startedAt": "2026-01-01T10:00:00Z", "finishedAt": "2026-01-01T11:05:00Z"}
    for number in range(120):
        here.workflow(f"old-{number}", phase="Succeeded", **times)
        created = {"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}}
        here.api.patch("workflows", f"old-{number}", created, "team")
    failed = node("train", "Failed", outputs={"exitCode": "65"})
    here.workflow("bad", phase="Failed", nodes=nodes(failed), **times)
    running = [node("dataset-download", "Succeeded"), node("train", "Running", progress="1/4")]
    here.workflow("one", phase="Running", nodes=nodes(*running))
    here.api.patch("workflows", "one", {"metadata": {"annotations": title}}, "team")
    later = {"metadata": {"creationTimestamp": "2999-01-01T10:00:00Z"}}
    here.api.patch("workflows", "one", later, "team")
    here.api.create("workflows", {"metadata": {"name": "another"}}, "team")
    with argo_server(here) as (_, way):
        done = here.sft("list", **way if through == "an Argo server" else {})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 123
    assert lines[0].split() == ["NAME", "PHASE", "STEP", "AGE", "DURATION", "TITLE"]
    assert lines[1].split()[:4] == ["one", "Running", "train", "25%"]
    assert lines[1].endswith("Fine-tune org/model")
    assert lines[2].split()[:5] == ["bad", "Failed", "train", "(exit", "code"]
    assert "1 h 5 min" in lines[2]


@pytest.mark.parametrize("through", ["the Kubernetes API", "an Argo server"])
def test_a_run_is_stopped_with_or_without_its_exit_handler(here: Cluster, through: str) -> None:
    with argo_server(here) as (_, way):
        way = way if through == "an Argo server" else {}
        for name, flags, shutdown in (("one", [], "Stop"), ("two", ["--terminate"], "Terminate")):
            here.workflow(name, phase="Running")
            done = here.sft("stop", name, *flags, **way)
            assert done.returncode == 0, done.stderr
            assert f"sft watch {name} -n team" in done.stderr
            assert here.api.get("workflows", name, "team")["spec"]["shutdown"] == shutdown
        here.workflow("over", phase="Succeeded")
        done = here.sft("stop", "over", **way)
        assert done.returncode == 0
        assert "over is over already: Succeeded" in done.stderr
        assert "shutdown" not in here.api.get("workflows", "over", "team")["spec"]
        missing = here.sft("stop", "nothing", **way)
        assert missing.returncode == 65
        assert '"nothing" not found' in missing.stderr
        assert here.sft("stop", "../one", **way).returncode == 64


def test_only_an_argo_server_retries(here: Cluster) -> None:
    here.workflow(phase="Failed")
    done = here.sft("retry", "one")
    assert done.returncode == 64
    assert "sft retry one --server URL" in done.stderr
    assert "argo retry one -n team" in done.stderr
    with argo_server(here) as (server, way):
        done = here.sft("retry", "one", **way)
        assert done.returncode == 0, done.stderr
        assert server.retried == ["one"]
        assert here.sft("retry", "two", **way).returncode == 65


@pytest.mark.parametrize(
    "server", ["http://[::1", "ftp://argo", "https://", "http://argo:99999", "http://argo:x"]
)
def test_an_address_that_is_none_of_a_server_is_told(here: Cluster, server: str) -> None:
    for command in (["list"], ["watch", "one"], ["stop", "one"], ["retry", "one"]):
        done = here.sft(*command, "--server", server, "-n", "team")
        assert done.returncode == 64, done.stderr
        assert f"--server: {server!r} is not an address" in done.stderr
    done = here.sft("list", "-n", "team", ARGO_SERVER=server)
    assert f"ARGO_SERVER: {server!r} is not an address" in done.stderr
    done = here.sft("list", "--server", "argo", ARGO_NAMESPACE="Team_A")
    assert "ARGO_NAMESPACE: 'Team_A' is not the name of a namespace" in done.stderr
