"""The dataset step against the same job by `datasets`, against copying, and against parsing alone.

Every contender is a process of its own, its start included, and reads the same file: chats of two
to eight turns, a third of them with a system turn, one row in ten not in canonical form. The step
does all that it always does: every check, statistics, checksums, deduplication, the split.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import WORDS

SIZES = (20_000, 200_000, 1_000_000)
TURNS = 3

DATASETS = """
import sys
from datasets import load_dataset
roles = {"system", "user", "assistant", "function", "tool"}
def canonical(row):
    return {"messages": [{"role": m["role"], "content": m["content"] or ""} for m in row["messages"]]}
def valid(row):
    return all(m["role"] in roles for m in row["messages"]) and any(
        m["role"] == "assistant" for m in row["messages"])
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2] + "/cache")
rows = rows.map(canonical, remove_columns=rows.column_names).filter(valid)
parts = rows.train_test_split(test_size=0.1, seed=42)
parts["train"].to_json(sys.argv[2] + "/train.jsonl")
parts["test"].to_json(sys.argv[2] + "/eval.jsonl")
"""
PARSE = """
import sys, orjson
for line in open(sys.argv[1], "rb"):
    orjson.loads(line)
"""
COPY = """
import shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[2] + "/copy")
"""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    busy: float
    """Seconds of processor time, of all its processes: what another load on the machine moves least."""
    megabytes: float
    """Peak resident memory of the largest process."""


def main(folder: Path, sizes: tuple[int, ...] = SIZES) -> None:
    """Print rates, peak memory, and ratios of the time (of the processor time) for each size."""
    cores = os.sched_getaffinity(0)
    for rows in sizes:
        data = make_rows(folder / f"rows-{rows}.jsonl", rows)
        size = data.stat().st_size / 1e6
        least = _least(
            {
                "datasets": [sys.executable, "-c", DATASETS],
                "copy": [sys.executable, "-c", COPY],
                "orjson": [sys.executable, "-c", PARSE],
                "step": STEP,
                "step, one core": ["taskset", "-c", str(min(cores)), *STEP],
            },
            data,
            folder,
        )
        print(f"dataset    {rows:,} rows, {size:,.0f} MB, {len(cores)} cores")
        for name, cost in least.items():
            ratios = ", ".join(
                f"{least[other].seconds / cost.seconds:.2f} ({least[other].busy / cost.busy:.2f}) {other}"
                for other in ("datasets", "copy", "orjson")
                if other != name
            )
            print(
                f"  {name:14} {cost.seconds:7.2f} s {cost.busy:7.2f} s CPU {rows / cost.seconds:10,.0f} rows/s "
                f"{size / cost.seconds:7,.0f} MB/s {cost.megabytes:6,.0f} MB peak   times as fast as: {ratios}"
            )


STEP = [sys.executable, "-m", "steps.dataset"]


def make_rows(path: Path, rows: int) -> Path:
    """A file of that many rows, 1.7 KB on average; always the same."""
    numbers = random.Random(3)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            messages = []
            if numbers.random() < 0.3:
                messages.append({"role": "system", "content": _text(numbers, 20)})
            for _ in range(numbers.randint(1, 4)):
                messages.append({"role": "user", "content": _text(numbers, 40)})
                messages.append({"role": "assistant", "content": _text(numbers, 80)})
            if numbers.random() < 0.1:
                file.write(json.dumps({"messages": messages}) + "\n")
            else:
                line = json.dumps({"messages": messages}, separators=(",", ":"))
                file.write(line + "\n")
    return path


def _text(numbers: random.Random, words: int) -> str:
    return " ".join(numbers.choices(WORDS, k=numbers.randint(words // 2, words * 2)))


def _least(contenders: dict[str, list[str]], data: Path, folder: Path) -> dict[str, Cost]:
    """The least that each took in turns, so that another load on the machine meets them alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for turn in range(TURNS):
        for name, command in contenders.items():
            if name == "datasets" and turn:  # it takes as long as all others together
                continue
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            words = [f"--workspace={out}", f"--data-uri={data}"]
            arguments = words if "steps.dataset" in command else [str(data), str(out)]
            costs[name].append(_cost([*command, *arguments]))
    return {
        name: Cost(
            min(cost.seconds for cost in several),
            min(cost.busy for cost in several),
            max(cost.megabytes for cost in several),
        )
        for name, several in costs.items()
    }


def _cost(command: list[str]) -> Cost:
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)
