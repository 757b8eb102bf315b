"""What is known of a training before a GPU is asked for: told, and refused where it cannot be.

A refusal has the exit code that the training would have ended with: 78 for want of memory, 74 for
want of room on the volume.
"""

import itertools
import logging
import os
from pathlib import Path
from typing import Any

from steps import files, weights
from steps.chat_template import TemplateError
from steps.errors import ConfigError, DataError, VolumeError
from steps.quantities import size
from steps.tokens import MASKED, ChatTokenizer, Encoded
from steps.train import estimate
from steps.train.backend import Job, Place
from steps.train.estimate import Shape
from steps.train.params import TrainParams
from steps.train.tokenize import Counts, Limits, NeverStopsError
from steps.workspace import Workspace

log = logging.getLogger(__name__)

_SAMPLE = {
    "messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
    ]
}
_ROWS_SHOWN, _LINES_READ = 3, 64
_SHOWN_OF_A_PART = 160
"""Characters of what stands between two marks."""
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def check(base: Path, chat_template: Path | None) -> Any:
    """The model's outline; DataError where it or its tokenizer cannot be loaded, or a chat not rendered.

    Values of weights are not read, nor need the weights be there.
    """
    model = weights.outline(base)
    tokenizer = ChatTokenizer.load(base, chat_template)
    try:
        sample = tokenizer.encode([_SAMPLE])[0]
    except TemplateError as error:
        raise DataError(f"{chat_template or base}: of a plain chat {error.args[0]}") from error
    weights.refuse_unknown(model, base, max(sample.ids))
    if not sample.stops:
        raise NeverStopsError(chat_template or base)
    return model


def refuse_unreadable(model: Any, base: Path, rows: Path, counts: Counts) -> None:
    """Raise DataError where rows have tokens that the model does not know, or more than it reads."""
    weights.refuse_unknown(model, base, counts.highest)
    most = weights.positions(model)
    if most is not None and counts.longest > most:
        raise DataError(
            f"{rows}: a row has {counts.longest:,} tokens, and {base} reads {most:,} at most; "
            f"leave longer rows out by --max-seq-len {most}"
        )


def refuse_want_of_memory(shape: Shape, params: TrainParams, place: Place) -> None:
    """Raise ConfigError where what a training holds at the least is more than there is."""
    if not place.has_gpus:
        _refuse_memory("training on a CPU", estimate.states(shape), place, "train on GPUs")
        return
    _refuse_memory(
        "writing a full state on the first node", estimate.moments(shape), place, "raise --memory"
    )
    gpu = estimate.gpu(shape, params, place, tokens=0)
    held = gpu.states + gpu.gathered
    if place.gpu_memory is not None and held > place.gpu_memory:
        raise ConfigError(
            f"by estimate, a GPU has to hold {size(held)} for parameters, gradients and AdamW's "
            f"moments alone, and has {size(place.gpu_memory)}: shard over more GPUs (--gpu, "
            "--workers, --num-procs, with --fsdp-sharding FULL_SHARD), or take a smaller --model"
        )


def _refuse_memory(doing: str, needed: int, place: Place, advice: str) -> None:
    if place.memory is not None and needed > place.memory:
        raise ConfigError(
            f"by estimate, {doing} takes {size(needed)} of memory at the least, and there are "
            f"{size(place.memory)}: {advice}, or take a smaller --model"
        )


def refuse_want_of_room(
    shape: Shape, params: TrainParams, workspace: Workspace, rows: int = 0
) -> None:
    """Raise VolumeError where the volume cannot take the checkpoints; tell how much it will take.

    Where the number of rows is not known yet, models by samples are left out of account.
    """
    disk = estimate.disk(shape, params, rows)
    free = _free(workspace.checkpoints)
    if free is None:
        return
    told = (
        f"{size(disk.total)} by estimate ({disk.models:,} x {size(disk.model)} for models, "
        f"{disk.states} x {size(disk.state)} for full states)"
    )
    if disk.total > free:
        raise VolumeError(
            f"{workspace.checkpoints}: the training will write {told}, and the volume has room for "
            f"{size(free)}: free or enlarge it, or keep fewer models (--save-epoch False, "
            "--save-samples 0), then run the same command"
        )
    log.info("on the volume: %s; it has room for %s", told, size(free))
    if params.checkpoint_minutes and disk.total + disk.state > free:
        log.warning(
            "%s: there is no room for one more full state of %s, which --checkpoint-minutes %s may "
            "write beside these",
            *(workspace.checkpoints, size(disk.state), params.checkpoint_minutes),
        )


def _free(folder: Path) -> int | None:
    """Bytes that can be written there, what an earlier attempt has written counted as free."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    volume = os.statvfs(there)
    if not volume.f_blocks:  # some network file systems do not say
        return None
    kept = files.size(folder) if folder.is_dir() else 0
    return volume.f_bavail * volume.f_frsize + kept


def tell(job: Job, place: Place, shape: Shape, counts: Counts, rows: Path) -> None:
    """Log what the training will be, and warn of what is likely not meant."""
    _tell_turns(counts, rows)
    _tell_schedule(job, place)
    if place.has_gpus:
        _tell_gpus(job, place, shape, counts)


def _tell_turns(counts: Counts, rows: Path) -> None:
    if counts.stops < counts.turns:
        log.warning(
            "%s:%s: an assistant turn has no end-of-turn token in the loss; %s of %s turns have "
            "none, and do not teach the model to stop",
            *(rows, counts.endless_line),
            *(f"{n:,}" for n in (counts.turns - counts.stops, counts.turns)),
        )
    if counts.calls_lost:
        log.warning(
            "%s:%s: a tool call is not in what is learnt: the chat template leaves out %s of %s; "
            "give one that renders tool_calls with --chat-template",
            *(rows, counts.lost_line),
            *(f"{n:,}" for n in (counts.calls_lost, counts.calls)),
        )


def _tell_schedule(job: Job, place: Place) -> None:
    params = job.params
    batch, rest = min(params.train_batch, job.rows), job.rows % params.train_batch
    log.info(
        "%s optimizer steps: %s epoch(s) of %s, %s rows each%s",
        *(f"{n:,}" for n in (job.steps, params.epochs, job.steps_an_epoch, batch)),
        f", the last of an epoch {rest:,}" if rest and job.steps_an_epoch > 1 else "",
    )
    if job.rows < params.train_batch:
        log.warning(
            "all %s rows are one step: a smaller --train-batch would learn more of them",
            f"{job.rows:,}",
        )
    if batch < place.world:
        log.warning(
            "%s of %s GPUs are idle in every step, which has %s rows: raise --train-batch, or use "
            "fewer GPUs (--workers, --gpu)",
            *(f"{n:,}" for n in (place.world - batch, place.world, batch)),
        )
    if params.lr_warmup >= job.steps:
        log.warning(
            "the warm-up of %s steps outlasts the training: --learning-rate is never reached",
            f"{params.lr_warmup:,}",
        )


def _tell_gpus(job: Job, place: Place, shape: Shape, counts: Counts) -> None:
    params = job.params
    rows_a_process = -(-min(params.train_batch, job.rows) // place.world)
    tokens = min(params.tokens, rows_a_process * counts.longest)
    gpu = estimate.gpu(shape, params, place, tokens)
    known = (
        f"it has {size(place.gpu_memory)}"
        if place.gpu_memory is not None
        else f"it fits GPUs of {fits[0]} GB or more"
        if (fits := gpu.fits())
        else f"it fits none of up to {estimate.GPUS[-1]} GB"
    )
    log.info(
        "a GPU, by estimate: %s (%s for parameters, gradients and moments, %s gathered, %s for "
        "activations and %s for logits of %s tokens); %s",
        *map(size, (gpu.total, gpu.states, gpu.gathered, gpu.activations, gpu.logits)),
        *(f"{tokens:,}", known),
    )
    if place.gpu_memory is not None and gpu.total > place.gpu_memory:
        log.warning(
            "the GPU's memory may not do: lower --tokens (%s now), or shard over more GPUs",
            f"{params.tokens:,}",
        )
    shm = estimate.shm(params, place, counts.tokens / counts.kept)
    host = estimate.host(shape, place)
    if place.memory is not None:
        log.info(
            "a pod, by estimate: %s of %s memory, and %s of /dev/shm in it",
            *map(size, (host, place.memory, shm)),
        )
        if host + shm > place.memory:
            log.warning("the memory may not do when a full state is written: raise --memory")
    if place.shm is not None and shm > place.shm:
        log.warning(
            "the shared memory (/dev/shm) has %s, and the rows on their way to the GPUs take about %s: mount a larger "
            "one, or lower --train-batch",
            *map(size, (place.shm, shm)),
        )


def show_rows(
    rows: Path, tokenizer: ChatTokenizer, limits: Limits, *, level: int, bold: bool = False
) -> None:
    """Log the first rows that are kept, shortened, with what is trained in them in ⟦ ⟧."""
    import orjson

    with rows.open("rb") as file:
        lines = list(itertools.islice(file, _LINES_READ))
    encoded = enumerate(tokenizer.encode([orjson.loads(line) for line in lines]), 1)
    kept = ((line, row) for line, row in encoded if limits.keep(row))
    for line, row in itertools.islice(kept, _ROWS_SHOWN):
        log.log(level, "%s:%s: %s", rows, line, _marked(row, tokenizer, bold=bold))


def _marked(row: Encoded, tokenizer: ChatTokenizer, *, bold: bool) -> str:
    first, last = (_BOLD, _PLAIN) if bold else ("", "")
    parts = []
    learnt = [label != MASKED for label in row.labels]
    for trained, group in itertools.groupby(
        zip(row.ids, learnt, strict=True), lambda pair: pair[1]
    ):
        text = _short(tokenizer.decode([token for token, _ in group], special=True))
        parts.append(f"{first}⟦{text}⟧{last}" if trained else text)
    return "".join(parts)


def _short(text: str) -> str:
    """The text on one line, without what a terminal would obey, its middle left out where it is long."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    half = _SHOWN_OF_A_PART // 2
    return shown if len(shown) <= _SHOWN_OF_A_PART else f"{shown[:half]} … {shown[-half:]}"
