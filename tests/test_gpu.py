"""What only a CUDA device can show: `make gpu-check`."""

import json
from pathlib import Path

import pytest

from steps.tokens import ChatTokenizer
from steps.train import instructlab
from steps.train.backend import metrics
from steps.train.tokenize import Limits, write_tokens
from tests.test_instructlab import job_in
from tests.test_training_cpu import write_chats
from tests.tiny import make_model

pytestmark = pytest.mark.gpu


def test_instructlab_trains_a_tiny_model_to_a_loadable_one_and_its_loss_falls(
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    job = job_in(tmp_path, rows=400, train_batch=16, epochs=2, learning_rate=3e-3, seed=3)
    make_model(job.base)
    chats = write_chats(tmp_path / "chats.jsonl", 400)
    counts = write_tokens(chats, job.tokens, ChatTokenizer.load(job.base), Limits(20, 511))
    assert counts.kept == 400
    found = metrics(instructlab.train(job))
    assert found["steps"] == job.steps == 50
    assert found["loss_last"] < 0.7 * found["loss_first"]
    told = json.loads((job.curve).read_text().splitlines()[-1])
    assert told["step"] == 50
    AutoModelForCausalLM.from_pretrained(job.checkpoints / "model")
