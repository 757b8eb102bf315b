"""The tuned model's scores beside the base model's: what changed, and whether for the better."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steps.quantities import number, percent

# Metric names of the held-out rows and of lm-eval; any other is better when higher.
_LOWER_IS_BETTER = {
    "loss",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "ter",
    "wer",
    "mse",
    "mae",
}
_SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1"}
_HELDOUT = {
    "loss": "Loss per token",
    "perplexity": "Perplexity",
    "exact_match": "Exact match",
    "chrf": "chrF",
}


@dataclass(frozen=True)
class Score:
    """One model's score, as it is shown."""

    value: str
    error: str
    """The standard error, where lm-eval gives one."""


@dataclass(frozen=True)
class Change:
    """What became of the base model's score."""

    amount: str
    factor: str
    """Of a loss: how many times lower or higher it is."""
    verdict: Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Comparison:
    """One score of both models; no `base` and no `change` where only the tuned one has it."""

    group: str
    """The held-out rows, or the name of a task."""
    metric: str
    base: Score | None
    tuned: Score
    change: Change | None


def comparisons(results: Mapping[str, Any]) -> Iterator[Comparison]:
    """All scores of evaluation/results.json, those of the held-out rows first."""
    base, tuned = _scores(results.get("heldout"))
    for metric, label in _HELDOUT.items():
        if tuned.get(metric) is not None:
            yield _compared("Held-out rows", label, metric, base, tuned)
    for task, scores in (results.get("tasks") or {}).items():
        base, tuned = _scores(scores)
        for metric in tuned:
            if "_stderr" not in metric:
                yield _compared(task, metric, metric, base, tuned)


def _scores(both: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    scores = both or {}
    return scores.get("base") or {}, scores.get("tuned") or {}


def _compared(
    group: str, label: str, metric: str, base: Mapping[str, Any], tuned: Mapping[str, Any]
) -> Comparison:
    # lm-eval puts a filter behind the metric's name: `exact_match,strict-match`.
    plain = metric.partition(",")[0]
    show = percent if plain in _SHARES else number
    return Comparison(
        group=group,
        metric=label,
        base=None if base.get(metric) is None else _score(metric, base, show),
        tuned=_score(metric, tuned, show),
        change=None if base.get(metric) is None else _change(plain, base[metric], tuned[metric]),
    )


def _score(metric: str, scores: Mapping[str, Any], show: Callable[[float], str]) -> Score:
    plain, comma, filtered = metric.partition(",")
    error = scores.get(f"{plain}_stderr{comma}{filtered}")
    return Score(show(scores[metric]), f"± {show(error)}" if error else "")


def _change(metric: str, before: float, after: float) -> Change:
    difference, size = after - before, abs(after - before)
    is_share = metric in _SHARES
    amount = f"{100 * size:.1f}" if is_share else f"{size:.3g}" if size < 100 else number(size)
    if not float(amount.replace(",", "")):
        return Change("±0", "", "same")
    improved = (difference < 0) == (metric in _LOWER_IS_BETTER)
    return Change(
        amount=("+" if difference > 0 else "−") + amount + (" points" if is_share else ""),
        factor=_factor(before, after) if metric == "loss" else "",
        verdict="better" if improved else "worse",
    )


def _factor(before: float, after: float) -> str:
    if min(before, after) <= 0:
        return ""
    factor = max(before, after) / min(before, after)
    shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.2g}"
    return f"{shown} times {'lower' if after < before else 'higher'}"
