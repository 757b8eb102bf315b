"""Both models on the held-out rows and on the tasks, one model in memory at a time."""

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps import files, record, weights
from steps.entrypoint import Run
from steps.errors import UsageError
from steps.evaluate import benchmarks, heldout, tasks
from steps.evaluate.benchmarks import Outcome
from steps.evaluate.heldout import HeldOut, Scores
from steps.evaluate.language_model import release
from steps.evaluate.params import EvaluateParams
from steps.record import Asset, Result
from steps.tokens import ChatTokenizer
from steps.workspace import Workspace

_HELDOUT_METRICS = ("loss", "perplexity", "exact_match", "chrf")
_VLLM = ("vllm",) if importlib.util.find_spec("vllm") else ()


def evaluate(params: EvaluateParams, run: Run) -> Result:
    """Score the models that `run.inputs` names, and leave what was found in evaluation/."""
    workspace = run.workspace
    has_rows = "eval" in run.inputs and workspace.eval_rows.stat().st_size > 0
    has_tasks = params.scores_tasks
    if not (has_rows or has_tasks):
        raise UsageError(
            f"{workspace.eval_rows}: no rows are held out, and there are no --tasks: nothing would "
            "be evaluated; give tasks, or an --eval-uri or a --data-split below 1 to the dataset step"
        )
    files.remove(workspace.results.parent)
    models = {"tuned": _path(run, "model")}
    if "base_model" in run.inputs:
        models["base"] = _path(run, "base_model")

    seconds: dict[str, float] = {}
    loaded = tasks.load(params, models["tuned"]) if has_tasks else {}
    held_out = _held_out(params, workspace, models["tuned"]) if has_rows else None
    for model in models.values():
        outline = weights.outline(model)
        if held_out:
            weights.refuse_unknown(outline, model, held_out.highest)
    scores: dict[str, Scores] = {}
    answers: dict[str, list[str]] = {}
    if held_out:
        rows_a_batch = None if params.batch == "auto" else int(params.batch)
        for name, model in models.items():
            with _timed(seconds, f"{name} model on held-out rows"):
                found = heldout.score(held_out, model, name, rows_a_batch)
                scores[name], answers[name] = found
                release()
    outcomes: dict[str, Outcome] = {}
    for name, model in models.items():
        if has_tasks and (name == "tuned" or params.baseline == "all"):
            with _timed(seconds, f"{name} model on tasks"):
                outcomes[name] = benchmarks.evaluate(params, loaded, model, models["tuned"], name)
                release()

    results = {"heldout": _by_model(scores), "tasks": _by_task(outcomes)}
    files.write(workspace.results, json.dumps(results, indent=2, allow_nan=False) + "\n")
    if params.log_samples:
        if held_out:
            _write_samples(workspace, held_out, answers)
        _write_task_samples(workspace, outcomes)
    return Result(
        outputs={
            path.stem: Asset.of(path, workspace)
            for path in (workspace.results, workspace.samples, workspace.task_samples)
            if path.exists()
        },
        metrics=_metrics(results),
        details={"seconds": seconds, "tasks": outcomes["tuned"].tasks if outcomes else {}},
        versions=record.versions(
            "lm-eval", "sacrebleu", "tokenizers", "torch", "transformers", *_VLLM
        ),
        results={
            "heldout-loss": f"{scores['tuned'].loss:.6g}" if scores else "",
            "heldout-loss-base": f"{scores['base'].loss:.6g}" if "base" in scores else "",
        },
    )


def _path(run: Run, model: str) -> Path:
    path = run.inputs[model].path
    assert path is not None  # `inputs` names only models that lie here
    return run.workspace.locate(path)


def _held_out(params: EvaluateParams, workspace: Workspace, model: Path) -> HeldOut:
    """The rows; the tokens that training made of them belong to its own model."""
    own = model == workspace.model and workspace.eval_tokens.exists()
    return heldout.read(
        workspace.eval_rows,
        workspace.eval_tokens if own else None,
        ChatTokenizer.load(model),
        params.heldout_limit,
    )


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[part] = round(time.monotonic() - begun, 1)


def _by_model(scores: dict[str, Scores]) -> dict[str, dict[str, float | None]]:
    return {name: found._asdict() for name, found in scores.items()}


def _by_task(outcomes: dict[str, Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, outcome in outcomes.items():
        for task, numbers in outcome.scores.items():
            found.setdefault(task, {})[name] = numbers
    return found


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    """The same by the record's names: flat, those of the base model with `_base` at their end."""
    ends = {"tuned": "", "base": "_base"}
    heldout_metrics = {
        f"heldout_{metric}{ends[name]}": scores[metric]
        for name, scores in results["heldout"].items()
        for metric in _HELDOUT_METRICS
    }
    task_metrics = {
        f"{task}.{metric}{ends[name]}": value
        for task, models in results["tasks"].items()
        for name, scores in models.items()
        for metric, value in scores.items()
    }
    return record.numbers(heldout_metrics | task_metrics)


def _write_samples(workspace: Workspace, held_out: HeldOut, answers: dict[str, list[str]]) -> None:
    import orjson

    with files.atomic(workspace.samples) as out:
        for sample in heldout.samples(held_out, answers):
            out.write(orjson.dumps(sample) + b"\n")


def _write_task_samples(workspace: Workspace, outcomes: dict[str, Outcome]) -> None:
    """lm-eval's samples: `<task>.jsonl`, and `<task>.base.jsonl` of the base model."""
    if not outcomes:
        return
    from lm_eval.utils import handle_non_serializable

    with files.atomic_folder(workspace.task_samples) as folder:
        for name, outcome in outcomes.items():
            for task, samples in outcome.samples.items():
                # Some names hold what no file's name may.
                stem = re.sub(r"[^\w.,=-]", "_", task) + (".base" if name == "base" else "")
                with (folder / f"{stem}.jsonl").open("w", encoding="utf-8") as out:
                    for sample in samples:
                        out.write(json.dumps(sample, default=handle_non_serializable) + "\n")
