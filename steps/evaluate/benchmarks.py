"""A model's scores on lm-eval tasks.

A task is asked with the model's chat template wherever its tokenizer has one, few-shot examples
as turns: so the model was trained and so it will be used, for multiple choice as for generation.
The tuned and the base model read the same prompts. A task whose prompts already hold a template
goes without by `--model-args apply_chat_template=false`.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from steps.errors import UsageError
from steps.evaluate.language_model import memory_errors
from steps.evaluate.params import EvaluateParams
from steps.progress import Progress, progress

log = logging.getLogger(__name__)

# lm-eval finds a batch by trying 64 of the longest prompts and going down when memory runs out.
# A GPU says so; on a CPU the kernel would end the process.
_BATCH_ON_CPU = 16

# Enough for two digits of the standard error of a metric that has no formula for it; lm-eval's own
# 100,000 take minutes.
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Outcome:
    """One model's scores."""

    scores: dict[str, dict[str, float]]
    """By task (and group of tasks) and metric, standard errors among them."""
    samples: dict[str, list[dict[str, Any]]]
    """By task; empty where they shall not be kept."""
    tasks: dict[str, dict[str, Any]]
    """Version, few-shot examples, number of samples and direction of each task's metrics."""


def evaluate(
    params: EvaluateParams, tasks: Mapping[str, Any], model: Path, tokenizer: Path, name: str
) -> Outcome:
    """The model's scores on the loaded tasks; `name` is how the log calls the model.

    Raises UsageError where lm-eval refuses what `--model-args` or `--gen-kwargs` say.
    """
    import lm_eval
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from transformers import set_seed

    set_seed(DEFAULT_OTHER_SEED)
    # Processes forked from one that runs torch's threads may hang, and a thousand draws need none.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with contextlib.redirect_stdout(sys.stderr), memory_errors():
        model_args = dict(params.model_args)
        with_template = model_args.pop("apply_chat_template", None)
        lm = _language_model(params, model_args, model, tokenizer)
        if with_template is None:
            with_template = bool(lm.tokenizer.chat_template)
        _show_progress(lm, name)
        try:
            results: Any = lm_eval.evaluate(
                lm=lm,
                task_dict=tasks,
                limit=None if params.limit < 0 else params.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=params.log_samples,
                apply_chat_template=with_template,
                fewshot_as_multiturn=bool(with_template),
            )
        except (AssertionError, TypeError, ValueError) as error:
            if not params.gen_kwargs:
                raise
            raise UsageError(f"--gen-kwargs {json.dumps(params.gen_kwargs)}: {error}") from error
    return Outcome(
        scores={task: _numbers(row) for task, row in _rows(results)},
        samples=results.get("samples") or {},
        tasks={
            task: {
                "version": results["versions"].get(task),
                "few_shot": results["n-shot"].get(task),
                "samples": results["n-samples"].get(task, {}).get("effective"),
                "higher_is_better": results["higher_is_better"].get(task),
                "chat_template": bool(with_template),
            }
            for task, _ in _rows(results)
        },
    )


def _language_model(
    params: EvaluateParams, model_args: dict[str, Any], model: Path, tokenizer: Path
) -> Any:
    """lm-eval's model: vLLM on a GPU where it is installed, else transformers."""
    import torch
    from lm_eval.api.registry import get_model

    gpus = torch.cuda.device_count()
    batch: int | str = params.batch if params.batch == "auto" else int(params.batch)
    arguments: dict[str, Any] = {"pretrained": str(model), "tokenizer": str(tokenizer)}
    if gpus and importlib.util.find_spec("vllm"):
        backend = "vllm"
        arguments |= {"tensor_parallel_size": gpus}
    elif gpus:
        backend = "hf"
        arguments |= {"device": "cuda:0", "parallelize": gpus > 1}
    else:
        backend = "hf"
        arguments |= {"device": "cpu", "dtype": "float32"}
        batch = _BATCH_ON_CPU if batch == "auto" else batch
    log.info("lm-eval with %s: %s", backend, model)
    try:
        return get_model(backend).create_from_arg_obj(arguments | model_args, {"batch_size": batch})
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        if not model_args:
            raise
        raise UsageError(f"--model-args {json.dumps(model_args)}: {error}") from error


def _show_progress(lm: Any, name: str) -> None:
    """Show how many of its requests the model has answered."""
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, kind, functools.partial(_watched, lm, getattr(lm, kind), f"{name} model"))


def _watched(lm: Any, ask: Callable[..., Any], name: str, requests: Sequence[Any]) -> Any:
    with progress(f"lm-eval, {name}", len(requests), "requests") as shown:
        lm.set_cache_hook(_Counter(shown))
        return ask(requests, disable_tqdm=True)


class _Counter:
    """Stands where lm-eval's cache would: it is told of every answer."""

    def __init__(self, shown: Progress) -> None:
        self._shown, self._done = shown, 0

    def add_partial(self, _kind: str, _request: object, _answer: object) -> None:
        """Count one."""
        self._done += 1
        self._shown.update(self._done)


def _rows(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tasks' results, and those of groups that have any of their own."""
    return [*results["results"].items(), *results.get("groups", {}).items()]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a result: `acc,none` as `acc`, `exact_match,strict` as it is."""
    found = {}
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if comma and isinstance(value, Real) and math.isfinite(value):
            found[metric if kind == "none" else key] = float(value)
    return found
