"""The run on one page: a pure function from the records to HTML.

The page loads nothing and runs nothing: style and pictures stand in it, and its own content
security policy forbids the rest, so the untrusted text of samples can do no harm.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import files, flags, quantities, record
from steps.quantities import number, short_duration
from steps.record import Record
from steps.report.chart import loss_chart
from steps.report.comparison import comparisons
from steps.workspace import STEPS, Workspace

if TYPE_CHECKING:
    import jinja2

MOST_SAMPLES = 20
FEW_ROWS = 100
"""Held-out rows; the scores of fewer are rough."""
LONG_TEXT = 360
"""Characters; longer text is folded."""
LONG_LINES = 8
"""Lines; more are folded too: an untrained model may answer with nothing but line breaks."""


def write(workspace: Workspace) -> None:
    """Renew the run's report from what is there.

    What a step left counts only while its record is there: the rest is of an earlier attempt.
    """
    others = sorted(path.stem for path in workspace.root.glob("*.json") if path.stem not in STEPS)
    found = {step: record.read(workspace, step) for step in (*STEPS, *others)}
    records = {step: done for step, done in found.items() if done}
    page = render(
        name=workspace.root.name,
        records=records,
        curve=_lines(workspace.curve) if "train" in records else [],
        samples=_lines(workspace.samples) if "evaluate" in records else [],
        results=_object(workspace.results) if "evaluate" in records else {},
        registration=_object(workspace.registration) if "register" in records else {},
    )
    # A lone surrogate in a sample has no UTF-8.
    files.write(workspace.report, page.encode("utf-8", "replace"))


def render(
    *,
    name: str,
    records: Mapping[str, Record],
    curve: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    results: Mapping[str, Any] | None = None,
    registration: Mapping[str, Any] | None = None,
) -> str:
    """The page. Every part but the name may be missing and is then shown as not there yet.

    `curve` holds the lines of training/curve.jsonl, `samples` those of evaluation/samples.jsonl;
    `results` and `registration` are the contents of the files of these names.
    """
    compared = list(comparisons(results or {}))
    heldout = [row for row in compared if row.metric in ("Loss per token", "Exact match")]
    return template().render(
        name=name,
        records=records,
        nodes=[_node(step, records.get(step)) for step in _names(records)],
        base_model=_parameter(records, "train", "model"),
        data=_parameter(records, "dataset", "data_uri"),
        verdicts=heldout or compared[:2],
        tiles=list(_tiles(records)),
        comparisons=compared,
        heldout=((results or {}).get("heldout") or {}).get("tuned") or {},
        chart=loss_chart(curve),
        curve=curve,
        samples=[_sample(sample) for sample in samples[:MOST_SAMPLES]],
        samples_total=len(samples),
        with_base=any(sample.get("base") is not None for sample in samples),
        statistics=_statistics(records),
        registration=registration or {},
        seconds=sum(done.seconds for done in records.values()),
        few_rows=FEW_ROWS,
        long_text=LONG_TEXT,
        long_lines=LONG_LINES,
    )


@functools.cache
def template() -> "jinja2.Template":
    """The page's template. To load it takes a while, which a step may have before it writes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "moment": quantities.moment,
        "duration": short_duration,
        "size": quantities.size,
        "text": flags.as_text,
    }
    return environment.get_template("report.html.j2")


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    note: str = ""


def _tiles(records: Mapping[str, Record]) -> Iterator[_Tile]:
    if "train" in records:
        metrics = records["train"].metrics
        first, last = (number(metrics.get(name)) for name in ("loss_first", "loss_last"))
        yield _Tile("Training loss", last, f"from {first}")
        steps = f"in {number(metrics.get('steps'))} steps"
        yield _Tile("Rows trained on", number(metrics.get("rows_trained")), steps)
        yield _Tile("Tokens in the loss", number(metrics.get("tokens_trained")), "an epoch")
        yield _Tile("Tokens a second", number(metrics.get("tokens_per_second")), "in training")
    elif "dataset" in records:
        metrics = records["dataset"].metrics
        yield _Tile("Rows to train on", number(metrics.get("rows_train")))
        yield _Tile("Rows held out", number(metrics.get("rows_eval")))
    if records:
        seconds = sum(done.seconds for done in records.values())
        steps = f"{len(records)} of {len(_names(records))} steps"
        yield _Tile("Time", short_duration(seconds), steps)
    if "register" in records and records["register"].status == "done":
        results = records["register"].results
        yield _Tile("Version", results.get("version") or "–", results.get("status", ""))


@dataclass(frozen=True)
class _Node:
    """One box of the DAG."""

    name: str
    record: Record | None
    gave: str
    """What came out, in a few words; why nothing did, where the step was skipped."""


def _node(name: str, done: Record | None) -> _Node:
    if done is None:
        return _Node(name, None, "")
    metrics = done.metrics
    gave = ""
    if done.status == "skipped":
        gave = done.reason or ""
    elif name == "dataset":
        train, held_out = (number(metrics.get(key)) for key in ("rows_train", "rows_eval"))
        gave = f"{train} rows to train on, {held_out} held out"
    elif name == "train":
        first, last = (number(metrics.get(key)) for key in ("loss_first", "loss_last"))
        gave = f"loss {first} → {last}"
    elif name == "evaluate" and "heldout_loss" in metrics:
        gave = f"held-out loss {number(metrics['heldout_loss'])}"
    elif name == "register":
        gave = f"{done.results.get('status', '')} {done.results.get('version', '')}".strip()
    return _Node(name, done, gave)


def _names(records: Mapping[str, Record]) -> list[str]:
    """The four steps, run or not, and whatever else has a record."""
    return [*STEPS, *(name for name in records if name not in STEPS)]


def _parameter(records: Mapping[str, Record], step: str, name: str) -> str:
    return str(records[step].parameters.get(name, "")) if step in records else ""


def _statistics(records: Mapping[str, Record]) -> Mapping[str, Any]:
    """Row counts, lengths and roles of the data set; empty where they are not known."""
    if "dataset" not in records:
        return {}
    done = records["dataset"]
    kinds = {
        "train": "to train on",
        "eval": "held out",
        "rejected": "rejected",
        "duplicate": "duplicates",
    }
    found = done.details.get("statistics") or {}
    return {
        "read": done.metrics.get("rows_read"),
        "rows": {
            kind: (label, done.metrics[f"rows_{kind}"])
            for kind, label in kinds.items()
            if f"rows_{kind}" in done.metrics
        },
        "lengths": {
            label: found[name]
            for name, label in (("characters", "Characters"), ("turns", "Turns"))
            if found.get(name)
        },
        "roles": found.get("roles") or {},
    }


@dataclass(frozen=True)
class _Sample:
    prompt: list[tuple[str, str]]
    """Role and text of each turn; the role is empty where the prompt is plain text."""
    expected: str
    base: str | None
    tuned: str

    def matches(self, answer: str | None) -> bool:
        """Whether the answer is the expected one but for white space around it."""
        return answer is not None and answer.strip() == self.expected.strip()


def _sample(sample: Mapping[str, Any]) -> _Sample:
    prompt = sample["prompt"]
    turns = [("", prompt)] if isinstance(prompt, str) else [_turn(turn) for turn in prompt]
    return _Sample(turns, sample["expected"], sample.get("base"), sample["tuned"])


def _turn(message: Mapping[str, Any]) -> tuple[str, str]:
    text = message.get("content")
    if not isinstance(text, str) or not text:
        # Tool calls and lists of parts have no text of their own.
        rest = {key: value for key, value in message.items() if key != "role" and value}
        text = json.dumps(rest, ensure_ascii=False)
    return str(message["role"]), text


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _object(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return content
