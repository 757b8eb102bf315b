"""A node of a training: its place among others, going on after a stop, and what its end tells.

The library's own loop trains here, in processes that torchrun starts: `tests/cuda_on_cpu` answers
for the GPUs.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.tokens import ChatTokenizer
from steps.train import checkpoints, cpu, instructlab
from steps.train.backend import Job
from steps.train.node import Node, this_node
from steps.train.params import TrainParams
from steps.train.tokenize import write_tokens
from tests.conftest import ROOT
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model

ROWS = 300
HARDWARE = ROOT / "tests" / "cuda_on_cpu"


def job_in(folder: Path, **params: Any) -> Job:
    """A job of 38 steps an epoch, the last of them of 4 rows."""
    base = make_model(folder / "base")
    tokens = folder / "tokens.jsonl"
    write_tokens(write_chats(folder / "chats.jsonl", ROWS), tokens, ChatTokenizer.load(base))
    values = {"train_batch": 8, "epochs": 3, "tokens": 600, "learning_rate": 3e-3, **params}
    place = folder / "checkpoints"
    job = Job(TrainParams(**values), base, tokens, ROWS, place, folder / "curve.jsonl")
    place.mkdir()
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

    return load_file(folder / "model.safetensors")


def test_a_training_that_is_stopped_and_killed_neither_skips_nor_repeats_a_row(
    tmp_path: Path,
) -> None:
    unbroken = job_in(tmp_path / "unbroken")
    code, told = end(start(unbroken))
    assert code == 0, told
    expected = instructlab.curve(unbroken)
    assert [point.step for point in expected] == list(range(1, 115))

    # On two nodes, of which the second is drained in the first epoch.
    job = job_in(tmp_path / "broken", save_samples=40)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    nodes = [start(job, PET_NODE_RANK=str(rank), **place) for rank in range(2)]
    wait_for(nodes[0], job, 3)
    nodes[1].send_signal(signal.SIGTERM)
    assert [end(node)[0] for node in nodes] == [143, 143]
    stopped = checkpoints.newest(job.checkpoints)
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
    killed = checkpoints.newest(job.checkpoints)
    assert killed is not None
    assert 45 <= killed.step < 114
    assert killed.step % 38

    code, told = end(start(job))
    assert code == 0, told
    found = instructlab.curve(job)
    assert [(point.step, point.epoch, point.lr) for point in found] == [
        (point.step, point.epoch, point.lr) for point in expected
    ]
    assert [point.loss for point in found] == pytest.approx(
        [point.loss for point in expected], abs=0.02
    )
    final, other = weights(unbroken.model), weights(job.model)
    assert final.keys() == other.keys()
    assert all(float((final[name] - other[name]).abs().max()) < 0.02 for name in final)
