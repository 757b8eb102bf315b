"""Training on a CPU: real tokens a second against transformers' Trainer as most people call it.

The baseline has per_device_train_batch_size=16 and else its defaults, gradient accumulation to the
same effective batch, the same rows and labels, the same optimizer settings.
"""

import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.inputs import make_chats, model
from steps.tokens import MASKED, ChatTokenizer
from steps.train import cpu
from steps.train.backend import Job
from steps.train.params import TrainParams
from steps.train.tokenize import Limits, write_tokens

ROWS, BATCH = 1200, 64


def main(folder: Path) -> None:
    """Print both rates and their ratio."""
    base = model(folder)
    chats = make_chats(folder / "training.jsonl", ROWS, mean_words=60)
    tokens = folder / "training-tokens.jsonl"
    counts = write_tokens(chats, tokens, ChatTokenizer.load(base), Limits(20, 511))
    rates: dict[str, list[float]] = {"ours": [], "trainer": []}
    for attempt in range(2):
        rates["trainer"].append(trainer(base, tokens, counts.tokens, folder / f"trainer-{attempt}"))
        rates["ours"].append(
            ours(base, tokens, counts.kept, counts.tokens, folder / f"ours-{attempt}")
        )
    best = {name: max(found) for name, found in rates.items()}
    print(
        f"training   {counts.kept} rows, mean {counts.tokens / counts.kept:.0f} tokens, "
        f"effective batch {BATCH}: ours {best['ours']:,.0f} tokens/s, "
        f"transformers.Trainer {best['trainer']:,.0f} tokens/s: {best['ours'] / best['trainer']:.2f}x"
    )


def ours(base: Path, tokens: Path, rows: int, total: int, folder: Path) -> float:
    """Tokens a second of a whole epoch, reading the rows and saving the model included."""
    folder.mkdir()
    params = TrainParams(train_batch=BATCH, learning_rate=1e-3, save_epoch=False)
    job = Job(params, base, tokens, rows, folder, folder / "curve.jsonl")
    begun = time.perf_counter()
    points = cpu.train(job)
    assert points[-1].step == job.steps
    return total / (time.perf_counter() - begun)


def trainer(base: Path, tokens: Path, total: int, folder: Path) -> float:
    """Tokens a second of a whole epoch, from `train()` to its return."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            self.rows = [orjson.loads(line) for line in tokens.read_bytes().splitlines()]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {name: self.rows[index][name] for name in ("input_ids", "labels")}

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=BATCH // 16,
        learning_rate=1e-3,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    arguments.num_train_epochs = 1
    runner = Trainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Rows(),
        data_collator=DataCollatorForSeq2Seq(
            AutoTokenizer.from_pretrained(base), label_pad_token_id=MASKED
        ),
    )
    begun = time.perf_counter()
    runner.train()
    return total / (time.perf_counter() - begun)
