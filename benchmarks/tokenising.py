"""Tokenising and masking: rows a second against instructlab-training's and TRL's own.

Each side goes from the file of chats to token ids with labels; imports and start-up are left out.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.inputs import make_chats, model
from steps.tokens import ChatTokenizer
from steps.train.tokenize import Limits, write_tokens

ROWS = 20_000


def main(folder: Path) -> None:
    """Print the seconds of each and the ratios."""
    base = model(folder)
    chats = make_chats(folder / "tokenising.jsonl", ROWS, mean_words=300)
    cores = len(os.sched_getaffinity(0))
    seconds = {
        "ours": _least(lambda: ours(base, chats, folder), 3),
        "instructlab": _least(lambda: instructlab(base, chats, folder, cores), 1),
        "trl": _least(lambda: trl(base, chats, folder, cores), 1),
    }
    print(
        f"tokenising {ROWS:,} rows on {cores} cores: ours {seconds['ours']:.1f} s, "
        f"instructlab {seconds['instructlab']:.1f} s: "
        f"{seconds['instructlab'] / seconds['ours']:.1f}x, "
        f"TRL {seconds['trl']:.1f} s: {seconds['trl'] / seconds['ours']:.1f}x"
    )


def ours(base: Path, chats: Path, folder: Path) -> float:
    """Seconds from rows to tokens/train.jsonl."""
    tokenizer = ChatTokenizer.load(base)
    begun = time.perf_counter()
    write_tokens(chats, folder / "tokens.jsonl", tokenizer, Limits(20, 100_000))
    return time.perf_counter() - begun


def instructlab(base: Path, chats: Path, folder: Path, processes: int) -> float:
    """Seconds of instructlab-training's `process_data` on the same rows."""
    from instructlab.training.data_process import process_data

    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints rows
        process_data(
            data_path=str(chats),
            data_output_path=str(folder / "instructlab"),
            max_seq_len=100_000,
            model_path=str(base),
            num_cpu_procs=processes,
        )
    return time.perf_counter() - begun


def trl(base: Path, chats: Path, folder: Path, processes: int) -> float:
    """Seconds of making TRL's SFTTrainer, which tokenises its data set then."""
    from datasets import load_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = load_dataset("json", data_files=str(chats), split="train")
    begun = time.perf_counter()
    SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            dataset_num_proc=processes,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=rows,
    )
    return time.perf_counter() - begun


def _least(measure: Callable[[], float], times: int) -> float:
    return min(measure() for _ in range(times))
