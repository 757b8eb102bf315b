"""The dataset step against the same job by `datasets`, against copying, and against parsing alone.

Every contender is a process of its own, its start included, and reads the same file: chats of two
to eight turns, a third of them with a system turn, one row in ten not in canonical form. The step
does all that it always does: every check, statistics, checksums, deduplication, the split.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import WORDS

SIZES = (20_000, 200_000, 1_000_000)
TURNS = 5

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


@dataclass(frozen=True)
class Turn:
    """The step, and what ran just before and after it: the machine's speed changes within minutes."""

    step: Cost
    copy: Cost
    orjson: tuple[Cost, Cost]

    def times(self) -> tuple[float, float]:
        """How many times as fast as orjson alone, and by processor time."""
        return (
            statistics.mean(cost.seconds for cost in self.orjson) / self.step.seconds,
            statistics.mean(cost.busy for cost in self.orjson) / self.step.busy,
        )


def main(folder: Path, sizes: tuple[int, ...] = SIZES) -> None:
    """Print rates, peak memory, and ratios of the time (of the processor time) for each size."""
    cores = os.sched_getaffinity(0)
    for rows in sizes:
        data = make_rows(folder / f"rows-{rows}.jsonl", rows)
        print(f"dataset    {rows:,} rows, {data.stat().st_size / 1e6:,.0f} MB, {len(cores)} cores")
        # Once: it takes minutes.
        datasets = _cost([sys.executable, "-c", DATASETS], data, folder)
        _show("datasets", datasets, data, rows)
        one_core = ["taskset", "-c", str(min(cores))]
        for name, prefix in (("step", []), ("step, one core", one_core)):
            turns = [_turn([*prefix, *STEP], data, folder) for _ in range(TURNS)]
            step, copy = (_median([getattr(turn, of) for turn in turns]) for of in ("step", "copy"))
            ratios = {
                "datasets": (datasets.seconds / step.seconds, datasets.busy / step.busy),
                "copying": (copy.seconds / step.seconds, copy.busy / step.busy),
                "orjson": tuple(
                    map(statistics.median, zip(*(turn.times() for turn in turns), strict=True))
                ),
            }
            told = ", ".join(f"{wall:.2f} ({busy:.2f}) {of}" for of, (wall, busy) in ratios.items())
            _show(name, step, data, rows, f"   times as fast as: {told}")
            beside = _median([cost for turn in turns for cost in turn.orjson])
            _show("orjson beside", beside, data, rows)


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


def _turn(step: list[str], data: Path, folder: Path) -> Turn:
    copy = _cost([sys.executable, "-c", COPY], data, folder)
    before = _cost([sys.executable, "-c", PARSE], data, folder)
    cost = _cost(step, data, folder)
    after = _cost([sys.executable, "-c", PARSE], data, folder)
    return Turn(cost, copy, (before, after))


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.busy for cost in costs),
        max(cost.megabytes for cost in costs),
    )


def _show(name: str, cost: Cost, data: Path, rows: int, ratios: str = "") -> None:
    size = data.stat().st_size / 1e6
    print(
        f"  {name:14} {cost.seconds:7.2f} s {cost.busy:7.2f} s CPU {rows / cost.seconds:10,.0f} rows/s "
        f"{size / cost.seconds:7,.0f} MB/s {cost.megabytes:6,.0f} MB peak{ratios}"
    )


def _cost(command: list[str], data: Path, folder: Path) -> Cost:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = (
        [f"--workspace={out}", f"--data-uri={data}"] if "steps.dataset" in command else [data, out]
    )
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)
