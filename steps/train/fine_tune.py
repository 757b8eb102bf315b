"""Fine-tuning from rows to a published model, by whichever backend fits the machine.

What a stopped attempt left is used again if it was made for the same result, and removed if not.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steps import files, record, weights
from steps.base_model.model import Examined
from steps.entrypoint import Run
from steps.params import shown
from steps.tokens import ChatTokenizer
from steps.train import launcher, preflight
from steps.train.backend import Job, metrics
from steps.train.card import model_card
from steps.train.estimate import Shape
from steps.train.params import TrainParams
from steps.train.publish import publish
from steps.train.tokenize import (
    SHORTEST,
    Counts,
    Limits,
    count_tokens,
    refuse_useless,
    write_tokens,
)
from steps.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What the record tells of a training."""

    metrics: dict[str, float]
    details: dict[str, Any]


def fine_tune(params: TrainParams, run: Run) -> Trained:
    """Leave the tuned model under `model/` and say how the training went."""
    workspace = run.workspace
    _forget_other_attempts(params, run)
    # Between publishing and the record lies the digest of the whole model: this file says that
    # the training need not be done again if that is cut short.
    finished = workspace.checkpoints / "finished.json"
    if not _is_finished(finished, workspace.model):
        files.remove(finished)
        trained = _train(params, run)
        files.write(finished, json.dumps({"bytes": files.size(workspace.model), **asdict(trained)}))
    _clean(params, run)
    told = json.loads(finished.read_text())
    return Trained(told["metrics"], told["details"])


def _is_finished(finished: Path, model: Path) -> bool:
    """Whether a training has ended, and what it published is still all there."""
    if not (finished.exists() and model.exists()):
        return False
    return bool(json.loads(finished.read_text())["bytes"] == files.size(model))


def _train(params: TrainParams, run: Run) -> Trained:
    workspace, begun = run.workspace, time.monotonic()
    base = workspace.locate(run.inputs["base_model"].path or "")
    prepared = _prepare(params, run, Examined(base, base), dry=False)
    job, tokenizer, rows = prepared.job, prepared.tokenizer, prepared.rows
    tokenised = time.monotonic()
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    job.curve.parent.mkdir(parents=True, exist_ok=True)
    found = metrics(launcher.choose(params).train(job, run)) | {
        "rows_trained": rows.kept,
        "rows_dropped_long": rows.dropped_long,
        "rows_dropped_short": rows.dropped_short,
        "tokens_trained": rows.tokens_trained,
    }
    trained = time.monotonic()
    publish(
        job.model,
        workspace.model,
        base=base,
        chat_template=tokenizer.template.source,
        stop_ids=tuple(tokenizer.stop_ids),
        card=_card(params, run, found),
    )
    seconds = {
        "tokenising": round(tokenised - begun, 1),
        "training": round(trained - tokenised, 1),
        "publishing": round(time.monotonic() - trained, 1),
    }
    return Trained(found, {"tokens": asdict(rows), "seconds": seconds})


def dry_run(params: TrainParams, run: Run, base: Examined) -> str:
    """What would be started or sent; all that is known before it is told. Nothing is written."""
    prepared = _prepare(params, run, base, dry=True)
    return launcher.choose(params).describe(prepared.job, run)


@dataclass(frozen=True)
class _Prepared:
    """A training that could begin now."""

    job: Job
    tokenizer: ChatTokenizer
    rows: Counts


def _prepare(params: TrainParams, run: Run, base: Examined, *, dry: bool) -> _Prepared:
    """Tokenise, tell what will be, and refuse what cannot; a dry one leaves no tokens."""
    workspace, chosen = run.workspace, launcher.choose(params)
    template = Path(params.chat_template) if params.chat_template else None
    model, place = weights.outline(base.folder), chosen.place(params)
    shape = Shape.of(model)
    preflight.refuse_want_of_memory(shape, params, place)
    tokenizer = ChatTokenizer.load(base.folder, template)
    rows = _tokenise(params, workspace, base.folder, tokenizer, model, dry=dry)
    preflight.refuse_want_of_room(shape, params, workspace, rows.kept)
    job = Job(
        params=params,
        base=base.path,
        tokens=workspace.train_tokens,
        rows=rows.kept,
        checkpoints=workspace.checkpoints,
        curve=workspace.curve,
        chat_template=tokenizer.template.source if template else None,
        held_out=workspace.eval_tokens,
    )
    preflight.tell(job, place, shape, rows, workspace.train_rows)
    # Rows are somebody's data: into a log that stays they go only where it is asked for.
    level, bold = (logging.INFO, sys.stderr.isatty()) if dry else (logging.DEBUG, False)
    if log.isEnabledFor(level):
        preflight.show_rows(
            workspace.train_rows, tokenizer, _limits(params), level=level, bold=bold
        )
    return _Prepared(job, tokenizer, rows)


def _limits(params: TrainParams) -> Limits:
    # A row that fits in no forward pass would be lost in training; it is dropped and counted here.
    return Limits(SHORTEST, min(params.max_seq_len, params.tokens))


def _tokenise(
    params: TrainParams,
    workspace: Workspace,
    base: Path,
    tokenizer: ChatTokenizer,
    model: Any,
    *,
    dry: bool,
) -> Counts:
    limits = _limits(params)
    if dry:
        rows = count_tokens(workspace.train_rows, tokenizer, limits)
        held_out = count_tokens(workspace.eval_rows, tokenizer)
    elif workspace.token_counts.exists():  # of an attempt before, whose workers may be reading them
        told = json.loads(workspace.token_counts.read_bytes())
        rows, held_out = Counts(**told["train"]), Counts(**told["eval"])
    else:
        rows = write_tokens(workspace.train_rows, workspace.train_tokens, tokenizer, limits)
        held_out = write_tokens(workspace.eval_rows, workspace.eval_tokens, tokenizer)
        counts = {"train": asdict(rows), "eval": asdict(held_out)}
        files.write(workspace.token_counts, json.dumps(counts))
    log.info(
        "training on %s of %s rows: %s tokens, %s of them in the loss, %s in the longest row of %s "
        "allowed; %s rows are held out",
        *(f"{n:,}" for n in (rows.kept, rows.rows, rows.tokens, rows.tokens_trained)),
        *(f"{n:,}" for n in (rows.longest, limits.longest, held_out.rows)),
    )
    if rows.kept < rows.rows:
        log.warning(
            "rows left out: %s longer than %s tokens (%s), %s shorter than %s, %s without a token "
            "in the loss",
            *(f"{n:,}" for n in (rows.dropped_long, limits.longest)),
            "--max-seq-len" if params.max_seq_len <= params.tokens else "--tokens",
            *(f"{n:,}" for n in (rows.dropped_short, limits.shortest, rows.dropped_masked)),
        )
    refuse_useless(rows, workspace.train_rows, limits)
    preflight.refuse_unreadable(model, base, workspace.train_rows, rows)
    weights.refuse_unknown(model, base, held_out.highest)
    return rows


def _forget_other_attempts(params: TrainParams, run: Run) -> None:
    """Remove checkpoints, tokens and model of an attempt at another result."""
    workspace = run.workspace
    marker = workspace.checkpoints / "fingerprint"
    if not marker.exists() or marker.read_text() != run.fingerprint:
        launcher.choose(params).end_other(params, run)
        for path in (
            workspace.checkpoints,
            workspace.token_counts,
            workspace.train_tokens,
            workspace.eval_tokens,
            workspace.curve,
            workspace.model,
        ):
            files.remove(path)
        files.write(marker, run.fingerprint)


def _clean(params: TrainParams, run: Run) -> None:
    """Remove the full state unless it shall stay, and what was cut off; what is not ours stays."""
    for entry in run.workspace.checkpoints.iterdir():
        is_state = entry.name.startswith("state-") and not params.save_full_state
        if is_state or entry.name.endswith((".partial", ".old")):
            files.remove(entry)


def _card(params: TrainParams, run: Run, found: dict[str, float]) -> str:
    data = record.read(run.workspace, "dataset")
    assert data is not None  # `inputs` has read it
    return model_card(
        name=run.name,
        base_model=run.inputs["base_model"].uri or "",
        base_revision=run.inputs["base_model"].revision,
        data_uri=str(data.parameters["data_uri"]),
        data_sha256=data.outputs["train"].sha256 or "",
        rows=int(found["rows_trained"]),
        parameters=shown(params),
        # Equal trainings give equal models, card included; their speed is not the model's.
        metrics={name: value for name, value in found.items() if name != "tokens_per_second"},
        versions=record.versions("instructlab-training", "torch", "transformers"),
    )
