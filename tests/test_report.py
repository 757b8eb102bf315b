"""The report: what it shows of a run, whole or not, and that nothing in it acts or loads."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steps import report
from steps.chart import XY, loss_chart, nice_ticks, smoothed, thinned
from steps.comparison import comparisons
from steps.quantities import duration, number, percent, short_duration, size
from steps.record import Asset, Record
from steps.workspace import Workspace

BEGUN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
SHA = "9f2c4e" + "0123456789abcdef" * 3 + "77aa01b2c3"


def make_record(step: str, *, minute: float = 0, seconds: float = 1, **fields: Any) -> Record:
    started = BEGUN + timedelta(minutes=minute)
    values: dict[str, Any] = {
        "step": step,
        "status": "done",
        "fingerprint": "f" * 64,
        "started": started,
        "finished": started + timedelta(seconds=seconds),
        "seconds": seconds,
        "parameters": {},
        "inputs": {},
        "outputs": {},
        "metrics": {},
        "versions": {"sft-pipeline": "0.1.0"},
    }
    return Record.model_validate(values | fields)


def make_run(steps: int = 1500) -> dict[str, Any]:
    """All that `render` takes, of a run as they are: a dictionary learned word by word."""
    data = make_record(
        "dataset",
        seconds=0.412,
        parameters={"data_uri": "hf://acme/dictionary@main", "data_split": 0.9, "hf_token": ""},
        inputs={"data": Asset(uri="hf://acme/dictionary", revision="4b1f0a77c2")},
        outputs={
            "train": Asset(path="dataset/train.jsonl", bytes=1_482_113, sha256=SHA),
            "eval": Asset(path="dataset/eval.jsonl", bytes=164_020, sha256=SHA),
        },
        metrics={
            "rows_read": 12_480,
            "rows_train": 11_070,
            "rows_eval": 1230,
            "rows_rejected": 24,
            "rows_duplicate": 156,
        },
        details={
            "statistics": {
                "characters": {"minimum": 18, "median": 131, "p95": 1204, "maximum": 18_223},
                "turns": {"minimum": 2, "median": 2, "p95": 8, "maximum": 24},
                "roles": {"system": 11_070, "user": 25_113, "assistant": 25_113, "tool": 310},
            }
        },
    )
    train = make_record(
        "train",
        minute=0.1,
        seconds=3_912.4,
        parameters={
            "model": "Qwen/Qwen2.5-1.5B-Instruct",
            "train_batch": 128,
            "epochs": 3,
            "learning_rate": 5e-06,
            "env_vars": "**********",
            "labels": "",
            "save_epoch": True,
        },
        inputs={
            "base_model": Asset(
                uri="hf://Qwen/Qwen2.5-1.5B-Instruct",
                path="/cache/hub/models--Qwen--Qwen2.5-1.5B-Instruct",
                revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
            )
        },
        outputs={"model": Asset(path="model", bytes=3_094_000_000, sha256=SHA)},
        metrics={
            "rows_trained": 11_051,
            "tokens_trained": 1_204_331,
            "steps": steps,
            "loss_first": 3.2141,
            "loss_last": 0.41234,
            "loss_min": 0.3981,
            "tokens_per_second": 18_422.7,
        },
        versions={"sft-pipeline": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        details={"seconds": {"tokenising": 12.4, "training": 3871.0, "publishing": 29.0}},
    )
    evaluate = make_record(
        "evaluate",
        minute=66,
        seconds=241.7,
        parameters={"tasks": ["arc_easy"], "limit": -1},
        outputs={"results": Asset(path="evaluation/results.json", bytes=1204, sha256=SHA)},
        metrics={"heldout_loss": 0.43123, "heldout_loss_base": 3.3504},
        versions={"lm_eval": "0.4.13"},
    )
    register = make_record(
        "register",
        minute=71,
        seconds=0.9,
        parameters={"address": "https://registry.example", "version": "1.0.0"},
        versions={"model-registry": "0.3.18"},
        results={"status": "registered", "version": "1.0.0", "uri": "pvc://sft-runs/runs/demo"},
    )
    curve = [
        {
            "step": step,
            "epoch": 3 * step / steps,
            "loss": 0.4 + 2.8 * math.exp(-7 * step / steps) * (1 + 0.12 * math.sin(step * 7.3)),
            "lr": 5e-6 * (1 + math.cos(math.pi * step / steps)) / 2,
            "tokens_per_second": 18_000 + step % 700,
        }
        for step in range(1, steps + 1)
    ]
    words = [("water", "Wasser"), ("bread", "Brot"), ("house", "Haus"), ("tree", "Baum")]
    samples: list[dict[str, Any]] = [
        {
            "row": row,
            "turn": 1,
            "prompt": [{"role": "user", "content": f"Translate into German: {english}"}],
            "expected": german,
            "base": "The word is often used in a sentence such as the one that you have here.",
            "tuned": german if row != 2 else "Hut",
        }
        for row, (english, german) in enumerate(words)
    ]
    long = "It depends on the season. " * 40
    samples.append(
        {
            "prompt": [
                {"role": "system", "content": "You are a gardener.\nAnswer briefly."},
                {"role": "user", "content": "When do I plant a tree?"},
                {"role": "assistant", "content": "In autumn."},
                {"role": "user", "content": "Why not in summer?"},
            ],
            "expected": "Because roots need water.",
            "base": long,
            "tuned": "Because roots need water.\n",
        }
    )
    return {
        "name": "demo-2026-11-23",
        "records": {done.step: done for done in (data, train, evaluate, register)},
        "curve": curve,
        "samples": samples,
        "results": {
            "heldout": {
                "tuned": {
                    "loss": 0.43123,
                    "perplexity": 1.5391,
                    "exact_match": 0.925,
                    "chrf": 95.12,
                    "rows": 1230,
                    "tokens": 133_902,
                },
                "base": {"loss": 3.3504, "perplexity": 28.51, "exact_match": 0.0, "chrf": 11.4},
            },
            "tasks": {
                "arc_easy": {
                    "tuned": {"acc": 0.7412, "acc_stderr": 0.009, "acc_norm": 0.6911},
                    "base": {"acc": 0.7601, "acc_stderr": 0.0088, "acc_norm": 0.6911},
                },
                "wikitext": {"tuned": {"word_perplexity": 12.41}, "base": {"word_perplexity": 13}},
            },
        },
        "registration": {
            "status": "registered",
            "registry": "https://registry.example",
            "name": "dictionary",
            "version": "1.0.0",
            "uri": "pvc://sft-runs/runs/demo-2026-11-23/model",
            "ids": {"model": "1", "version": "4", "artifact": "7"},
        },
    }
