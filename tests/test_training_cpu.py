"""Training on a CPU: the arithmetic, the parameters' effects, and going on after a stop."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from steps.tokens import MASKED, ChatTokenizer
from steps.train import cpu
from steps.train.backend import Job, Point, metrics
from steps.train.params import TrainParams
from steps.train.tokenize import Counts, Limits, refuse_useless, write_tokens
from tests.tiny import Architecture, make_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ROWS = 40


def write_chats(path: Path, rows: int = ROWS, words: int = 30) -> Path:
    numbers = random.Random(1)
    with path.open("w") as file:
        for _ in range(rows):
            chosen = numbers.choices(WORDS, k=numbers.randint(3, words))
            chat = [
                {"role": "user", "content": " ".join(chosen)},
                {"role": "assistant", "content": " ".join(chosen[:3])},
            ]
            file.write(json.dumps({"messages": chat}) + "\n")
    return path


def job_in(folder: Path, base: Path, encoded: Path, rows: int = ROWS, **params: Any) -> Job:
    folder.mkdir()
    values = {"train_batch": 8, "epochs": 2, "learning_rate": 3e-3, **params}
    return Job(TrainParams(**values), base, encoded, rows, folder, folder / "curve.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokens(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    path = folder / "tokens.jsonl"
    write_tokens(write_chats(folder / "chats.jsonl"), path, ChatTokenizer.load(base))
    return path


def plain_loss(base: Path, rows: list[dict[str, list[int]]]) -> float:
    """The loss per trained token, one row at a time with the model's own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != MASKED).sum())
    return total / count


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox"])
def test_the_loss_of_packed_rows_is_that_of_each_row_alone(
    tmp_path: Path, architecture: Architecture
) -> None:
    base = make_model(tmp_path / "base", architecture)
    tokens = tmp_path / "tokens.jsonl"
    write_tokens(write_chats(tmp_path / "chats.jsonl"), tokens, ChatTokenizer.load(base))
    job = job_in(tmp_path / "out", base, tokens, train_batch=ROWS, epochs=1, tokens=100)
    rows = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert cpu.train(job)[0].loss == pytest.approx(plain_loss(base, rows), abs=1e-5)


def test_a_training_learns_and_writes_each_step_to_the_curve(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    job = job_in(tmp_path / "out", base, tokens, epochs=4, learning_rate=1e-2)
    points = cpu.train(job)
    found = metrics(points)
    assert found["steps"] == 20
    assert found["loss_last"] < 0.7 * found["loss_first"]
    assert found["loss_min"] == min(point.loss for point in points)
    curve = [Point(**json.loads(line)) for line in job.curve.read_text().splitlines()]
    assert curve == points
    assert curve[-1].epoch == 4


def losses(job: Job) -> list[float]:
    return [point.loss for point in cpu.train(job)]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    first, second, other = (
        job_in(tmp_path / name, base, tokens, epochs=1, seed=seed)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert losses(first) == losses(second)
    assert losses(first) != losses(other)
    weights = [job.checkpoints / "model" / "model.safetensors" for job in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def rates(folder: Path, base: Path, tokens: Path, **params: Any) -> list[float]:
    job = job_in(folder, base, tokens, **params)
    return [round(point.lr / 3e-3, 3) for point in cpu.train(job)]


def test_scheduler_and_warm_up_shape_the_learning_rate(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    constant = rates(tmp_path / "a", base, tokens, lr_scheduler="constant")
    linear = rates(tmp_path / "b", base, tokens, lr_scheduler="linear", lr_warmup=2)
    cosine = rates(tmp_path / "c", base, tokens, lr_scheduler="cosine")
    assert constant == [1.0] * 10
    assert linear == [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert cosine[0] == 1.0
    assert cosine[5] == 0.5


def test_the_token_budget_splits_the_work_and_not_the_result(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    wide = losses(job_in(tmp_path / "wide", base, tokens, epochs=1))
    narrow = losses(job_in(tmp_path / "narrow", base, tokens, epochs=1, tokens=60))
    assert narrow == pytest.approx(wide, abs=1e-4)


def test_the_held_out_loss_joins_the_curve_after_each_epoch_where_it_costs_little(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    few = tmp_path / "few.jsonl"
    lines = tokens.read_text().splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: len(row["input_ids"]))[:5]
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = replace(job_in(tmp_path / "out", base, tokens, save_epoch=False), held_out=few)
    points = cpu.train(job)
    assert [point.step for point in points if point.heldout is not None] == [5, 10]
    assert points[-1].heldout == pytest.approx(plain_loss(job.model, rows), abs=1e-5)
    assert json.loads(job.curve.read_text().splitlines()[-1])["heldout"] == points[-1].heldout

    many = replace(job_in(tmp_path / "many", base, tokens, epochs=1), held_out=tokens)
    assert all(point.heldout is None for point in cpu.train(many))


def test_epochs_and_batches_that_do_not_divide_the_rows_train_every_row(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    points = cpu.train(job_in(tmp_path / "out", base, tokens, train_batch=16))
    assert [point.epoch for point in points] == [0.3333, 0.6667, 1, 1.3333, 1.6667, 2]


def test_models_of_epochs_and_samples_are_kept_where_asked_for(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    job = job_in(tmp_path / "out", base, tokens, save_samples=16)
    cpu.train(job)
    kept = {path.name for path in job.checkpoints.iterdir() if path.is_dir()}
    assert kept == {
        "epoch-1",
        "samples-16",
        "samples-32",
        "samples-48",
        "samples-64",
        "model",
        "state-000000010",
    }
    bare = job_in(tmp_path / "bare", base, tokens, save_epoch=False)
    cpu.train(bare)
    kept = {path.name for path in bare.checkpoints.iterdir() if path.is_dir()}
    assert kept == {"model", "state-000000010"}


def test_a_training_whose_loss_is_no_number_is_refused(
    tmp_path: Path, base: Path, tokens: Path
) -> None:
    job = job_in(tmp_path / "out", base, tokens, epochs=4, learning_rate=1e30)
    with pytest.raises(DataError, match=r"diverged at step \d+: .* lower --learning-rate"):
        cpu.train(job)


def test_rows_are_dropped_by_length_and_counted(tmp_path: Path, base: Path) -> None:
    tokenizer = ChatTokenizer.load(base)
    chats, out = write_chats(tmp_path / "chats.jsonl", 10), tmp_path / "tokens.jsonl"
    lengths = sorted(
        len(row.ids)
        for row in tokenizer.encode([json.loads(line) for line in chats.read_text().splitlines()])
    )
    limits = Limits(lengths[3], lengths[6])
    counts = write_tokens(chats, out, tokenizer, limits)
    assert (counts.rows, counts.kept) == (10, len(out.read_text().splitlines()))
    assert counts.dropped_short == sum(length < limits.shortest for length in lengths)
    assert counts.dropped_long == sum(length > limits.longest for length in lengths)
    kept = [length for length in lengths if limits.shortest <= length <= limits.longest]
    assert counts.tokens == sum(kept)


def test_two_processes_write_the_same_tokens_as_one(tmp_path: Path, base: Path) -> None:
    tokenizer = ChatTokenizer.load(base)
    many = write_chats(tmp_path / "many.jsonl", 600)
    text = many.read_text()
    large = tmp_path / "large.jsonl"
    large.write_text(text * (1 + (5 << 20) // len(text)))
    write_tokens(many, tmp_path / "many-tokens.jsonl", tokenizer)
    counts = write_tokens(large, tmp_path / "large-tokens.jsonl", tokenizer)
    once = (tmp_path / "many-tokens.jsonl").read_bytes()
    assert (tmp_path / "large-tokens.jsonl").read_bytes() == once * (counts.rows // 600)


def test_what_teaches_nothing_is_refused() -> None:
    limits = Limits(20, 100)
    with pytest.raises(DataError, match=r"nothing is left.*5 are longer than 100.*4 shorter"):
        refuse_useless(Counts(rows=9, dropped_long=5, dropped_short=4), Path("rows"), limits)
    with pytest.raises(DataError, match="never learn to stop"):
        refuse_useless(Counts(rows=9, tokens_trained=5), Path("rows"), limits)
    refuse_useless(Counts(rows=9, tokens_trained=5, stops=1), Path("rows"), limits)
