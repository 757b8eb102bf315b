"""A node of a training: its place among others, going on after a stop, and what its end tells.

The library's own loop trains here, in processes that torchrun starts: `tests/cuda_on_cpu` answers
for the GPUs.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps import logs
from steps.errors import ConfigError
from steps.tokens import ChatTokenizer
from steps.train import checkpoints, cpu, instructlab
from steps.train.backend import Job
from steps.train.node import Node, this_node
from steps.train.params import TrainParams
from steps.train.rank import _alike_on_all_ranks
from steps.train.tokenize import write_tokens
from steps.train.worker import leave_message
from tests.conftest import ROOT
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model

ROWS = 300
HARDWARE = ROOT / "tests" / "cuda_on_cpu"


def job_at(folder: Path, chat_template: str | None = None, **params: Any) -> Job:
    """A job of 38 steps an epoch, the last of them of 4 rows."""
    values = {"train_batch": 8, "epochs": 2, "tokens": 600, "learning_rate": 3e-3, **params}
    return Job(
        TrainParams(**values),
        folder / "base",
        folder / "tokens.jsonl",
        ROWS,
        folder / "checkpoints",
        folder / "curve.jsonl",
        chat_template,
    )


def job_in(folder: Path, **params: Any) -> Job:
    job = job_at(folder, **params)
    base = make_model(job.base, template=None if job.chat_template else CHATML)
    template = folder / "template.jinja"
    template.write_text(CHATML)
    tokenizer = ChatTokenizer.load(base, template)
    write_tokens(write_chats(folder / "chats.jsonl", ROWS), job.tokens, tokenizer)
    job.checkpoints.mkdir()
    job.write(job.file)
    return job


def start(job: Job, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "steps.train.worker", str(job.file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{HARDWARE}{os.pathsep}{ROOT}",
            "OMP_WAIT_POLICY": "PASSIVE",
            "GLOO_SOCKET_IFNAME": "lo",
            **environment,
        },
    )


def end(worker: "subprocess.Popen[str]") -> tuple[int, str]:
    _, told = worker.communicate()
    return worker.returncode, told


def wait_for(worker: "subprocess.Popen[str]", job: Job, step: int) -> None:
    """Read the worker's lines until the step is taken."""
    assert worker.stderr is not None
    for _ in worker.stderr:
        last = instructlab.latest(job)
        if last and last.step >= step:
            return
    raise AssertionError(f"ended with {worker.wait()} before step {step}")


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    # DDP's state has a prefix that FSDP's has not.
    return {name.removeprefix("module."): value for name, value in found.items()}


def test_a_training_that_is_stopped_and_killed_neither_skips_nor_repeats_a_row(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path, save_samples=40, chat_template=CHATML)
    # On two nodes, of which the second is drained in the first epoch.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    nodes = [start(job, PET_NODE_RANK=str(rank), **place) for rank in range(2)]
    wait_for(nodes[0], job, 3)
    nodes[1].send_signal(signal.SIGTERM)
    assert [end(node)[0] for node in nodes] == [143, 143]
    stopped = checkpoints.newest(job.checkpoints, "GPU")
    assert stopped is not None
    assert 3 <= stopped.step < 38
    assert instructlab.curve(job)[-1].step == stopped.step

    # On one node, which is killed inside the second epoch.
    for name in ("lost+found", ".snapshot", "state-000000999", "state-foreign"):
        (job.checkpoints / name).mkdir()
    worker = start(job)
    wait_for(worker, job, 50)
    worker.kill()
    worker.communicate()  # ends when no process of it holds the pipe any longer
    killed = checkpoints.newest(job.checkpoints, "GPU")
    assert killed is not None
    assert 45 <= killed.step < 76
    assert killed.step % 38

    code, told = end(start(job))
    assert code == 0, told

    # As the CPU path trains without a stop, which computes in fp32 and not in bf16.
    expected = cpu.train(replace(job, checkpoints=tmp_path / "cpu"))
    found = instructlab.curve(job)
    assert [point.step for point in found] == [point.step for point in expected]
    # The library tells the rate of the step to come.
    assert [point.lr for point in found[:-1]] == pytest.approx(
        [point.lr for point in expected[1:]], rel=1e-6
    )
    assert [point.loss for point in found] == pytest.approx(
        [point.loss for point in expected], abs=0.01
    )
    ours, theirs = weights(tmp_path / "cpu" / "model"), weights(job.model)
    assert theirs.keys() == ours.keys()
    assert all(float((theirs[name] - ours[name]).abs().max()) < 0.05 for name in ours)
    kept = {path.name for path in job.checkpoints.iterdir() if path.is_dir()}
    assert kept >= {"epoch-1", "samples-40", "model", "state-000000076"}
    assert ".partial" not in kept
    assert not checkpoints.partial(job.checkpoints).exists()


def test_a_node_that_is_stopped_while_others_are_not_there_ends_at_once(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    job.checkpoints.mkdir()
    job.write(job.file)
    place = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "nowhere.invalid"}
    node = start(job, **place)
    assert node.stderr is not None
    while "nowhere.invalid" not in (line := node.stderr.readline()) or "starting" in line:
        assert line  # torchrun has looked for the other node
    node.send_signal(signal.SIGTERM)
    code, told = end(node)
    assert code == 143, told
    assert "no process has begun" in told
    assert "terminated; the next attempt goes on" in told


def test_a_node_leaves_the_first_line_of_its_end_for_the_pods_status(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    logs.hide("a-long-secret")
    leave_message("no pod", path)
    assert not path.exists()
    path.touch()
    leave_message("the key a-long-secret is wrong: renew it\n  line of the log", path)
    assert path.read_text() == "the key ********** is wrong: renew it"
    leave_message("x" * 5000, path)
    assert path.stat().st_size == 4096  # Kubernetes keeps no more
    path.unlink()
    path.mkdir()
    leave_message("what cannot be written is not worth another failure", path)


def test_ranks_take_as_many_passes_as_one_another_where_rows_are_padded() -> None:
    from instructlab.training.padded_batch_packer import batch_lengths_to_minibatches_padded

    lengths, ranks = [90, 80, 30, 20, 10, 9, 8, 7], 3
    packed = _alike_on_all_ranks(batch_lengths_to_minibatches_padded)
    passes = [packed(lengths, 100, ranks, rank) for rank in range(ranks)]
    assert len({len(mine) for mine in passes}) == 1
    rows = [row for mine in passes for one in mine for row in one if row != -1]
    assert sorted(rows) == list(range(len(lengths)))


def test_a_diverged_training_ends_at_once_with_65_and_says_so(tmp_path: Path) -> None:
    job = job_in(tmp_path, learning_rate=1e30)
    code, told = end(start(job))
    assert code == 65
    assert re.search(r"training diverged at step \d: the loss is (nan|inf); lower", told)
    assert not job.model.exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Node()),
        ({"SFT_NODES": "1"}, Node()),
        (
            {
                "PET_NNODES": "2",
                "PET_NODE_RANK": "1",
                "PET_NPROC_PER_NODE": "auto",
                "PET_MASTER_ADDR": "job-node-0-0.job",
                "PET_MASTER_PORT": "29400",
            },
            Node(2, 1, "job-node-0-0.job", 29400, "auto"),
        ),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "8"}, Node(processes="8")),
        (
            {"SFT_NODES": "3", "JOB_COMPLETION_INDEX": "2", "SFT_MASTER_ADDR": "job-node-0-0.job"},
            Node(3, 2, "job-node-0-0.job"),
        ),
    ],
)
def test_a_node_knows_its_place_from_the_environment(
    environment: dict[str, str], expected: Node
) -> None:
    assert this_node(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "PET_MASTER_ADDR is not set"),
        ({"PET_NODE_RANK": "0"}, "PET_NNODES is not set"),
        ({"PET_NNODES": "1:4", "PET_NODE_RANK": "0"}, "PET_NNODES is '1:4', not a number"),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "1"}, "node 1, counted from 0, of 1"),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "0", "SFT_NODES": "4"}, "made for 4 nodes"),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "cpu"}, "needs GPUs"),
        ({"SFT_NODES": "2", "SFT_MASTER_ADDR": "a"}, "JOB_COMPLETION_INDEX is not set"),
        ({"SFT_NODES": "2", "JOB_COMPLETION_INDEX": "0"}, "SFT_MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_does_not_tell_the_place_is_refused(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        this_node(environment)


def test_liger_kernels_that_are_not_there_are_told_before_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    job = job_at(tmp_path, use_liger=True)
    job.checkpoints.mkdir()
    job.write(job.file)
    code, told = end(start(job))
    assert code == 78
    assert "liger-kernel is not installed here" in told


def test_a_node_without_the_runs_volume_says_so(tmp_path: Path) -> None:
    code, told = end(start(replace(job_at(tmp_path), checkpoints=tmp_path / "elsewhere")))
    assert code == 78
    assert "job.json: not there; mount the run's volume" in told
