"""Training on a machine without GPUs: the same tokens, batches, optimizer and schedule, no padding.

Rows of a micro-batch stand one after another in a single sequence, each attending to itself alone,
so not a token is padding; and only the positions that count in the loss go through the LM head.
Batches are those of instructlab-training: `train_batch` rows an optimizer step in an order seeded
by seed + epoch, split by the token budget, the loss divided by the step's trained tokens.
"""

import contextlib
import inspect
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steps import files, weights
from steps.errors import DataError, Terminated
from steps.progress import progress
from steps.tokens import MASKED
from steps.train import checkpoints
from steps.train.backend import Job, Point

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Beyond this a longer sequence is no faster on a CPU: its activations leave the caches.
_TOKENS_A_PASS = 2048

# Of an epoch's tokens. A held-out one costs a third of one that is learnt from.
_HELD_OUT_SHARE = 0.25

# The optimizer of instructlab-training 0.16 (its `TrainingArgs` and accelerator), so that a CPU
# run foretells a GPU run.
_BETAS, _EPSILON, _WEIGHT_DECAY, _CLIP = (0.9, 0.95), 1e-8, 0.0, 1.0


def train(job: Job) -> list[Point]:
    """Train, and leave the model in `checkpoints/model`; return the whole loss curve.

    Goes on from the newest full state in `checkpoints/`, to the same final loss as a training
    that was not stopped. Raises DataError where the loss is no longer a number.
    """
    import torch
    from accelerate import Accelerator
    from transformers import get_scheduler, set_seed

    log.info(
        "there is no GPU: training on %d threads of the CPU; workers, gpu, cpu and memory count "
        "for nothing here",
        torch.get_num_threads(),
    )
    set_seed(job.params.seed)
    rows = _load(job.tokens)
    held_out = _held_out(job, rows)
    model, packed = _model(job, max(len(ids) for ids, _ in rows))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=job.params.learning_rate,
        betas=_BETAS,
        eps=_EPSILON,
        weight_decay=_WEIGHT_DECAY,
    )
    scheduler = get_scheduler(
        job.params.lr_scheduler, optimizer, job.params.lr_warmup, num_training_steps=job.steps
    )
    accelerator = Accelerator(cpu=True)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    states = _States(job.checkpoints, accelerator)
    step = states.load()
    points = _resume_curve(job.curve, step)
    budget = min(job.params.tokens, _TOKENS_A_PASS) if packed else 0
    saver = _Saver(job, states, model)
    with (
        _stoppable() as stop,
        job.curve.open("a", encoding="utf-8") as curve,
        progress("training", job.steps, "steps") as shown,
    ):
        shown.update(step)
        while step < job.steps:
            begun = time.perf_counter()
            batch = _batch(job, step, rows)
            loss, tokens = _step(model, accelerator, batch, budget)
            lr = scheduler.get_last_lr()[0]
            accelerator.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if not math.isfinite(loss):
                raise DataError(
                    f"training diverged at step {step}: the loss is {loss}; "
                    "lower --learning-rate or raise --lr-warmup"
                )
            seconds = time.perf_counter() - begun
            ends_epoch = step % job.steps_an_epoch == 0
            point = Point(
                step=step,
                epoch=round(step / job.steps_an_epoch, 4),
                loss=loss,
                lr=lr,
                tokens_per_second=round(tokens / seconds, 1),
                heldout=_loss(model, held_out, budget) if held_out and ends_epoch else None,
            )
            points.append(point)
            curve.write(point.line())
            curve.flush()
            shown.update(step, loss=f"{loss:.4f}", tokens_per_second=f"{tokens / seconds:,.0f}")
            saver.after(step)
            if stop:
                states.save(step)
                log.info("stopped after step %d; its state is kept", step)
                _leave(stop[0])
    _save_model(model, job, job.model)
    return points


def _load(tokens: Path) -> list[tuple["torch.Tensor", "torch.Tensor"]]:
    import orjson
    import torch

    rows = []
    with tokens.open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            rows.append((torch.tensor(row["input_ids"]), torch.tensor(row["labels"])))
    return rows


def _held_out(
    job: Job, rows: list[tuple["torch.Tensor", "torch.Tensor"]]
) -> list[tuple["torch.Tensor", "torch.Tensor"]]:
    """The held-out rows that are no longer than those to learn from; none where they cost much."""
    if job.held_out is None:
        return []
    most = max(len(ids) for ids, _ in rows)
    found = [row for row in _load(job.held_out) if len(row[0]) <= most and _trained([row])]
    tokens, learnt = (sum(len(ids) for ids, _ in part) for part in (found, rows))
    return found if tokens <= _HELD_OUT_SHARE * learnt else []


def _model(job: Job, longest: int) -> tuple[Any, bool]:
    """The base model in fp32, and whether rows can be packed into one sequence."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register("packed", _packed_attention)
    model = weights.load(job.base, dtype=torch.float32)
    packed = _can_pack(model, longest)
    if packed:
        model.set_attn_implementation("packed")
    model.config.use_cache = False
    model.train()
    return model, packed


def _can_pack(model: Any, longest: int) -> bool:
    """Whether plain causal attention over each row is all that the model's attention does."""
    config = model.config
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return bool(
        model._supports_attention_backend
        and set(getattr(config, "layer_types", None) or ["full_attention"])
        <= {"full_attention", "sliding_attention"}
        and all(window is None or window >= longest for window in windows)
        and getattr(config, "attn_logit_softcapping", None) is None
        and config.model_type != "gpt_oss"  # its attention has sinks
    )


class _Lengths:
    """Lengths of the rows in the sequence that is being computed."""

    now: tuple[int, ...] = ()


def _packed_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    _mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple["torch.Tensor", None]:
    """Causal attention of each row over itself; tensors are (1, heads, tokens, head size)."""
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    split = [torch.split(part, list(_Lengths.now), dim=2) for part in (query, key, value)]
    rows = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout if module.training else 0.0, scale=scaling
        )
        for q, k, v in zip(*split, strict=True)
    ]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _batch(
    job: Job, step: int, rows: list[tuple["torch.Tensor", "torch.Tensor"]]
) -> list[tuple["torch.Tensor", "torch.Tensor"]]:
    """The rows of an optimizer step (counted from 0), whatever was trained before it."""
    import torch

    epoch, number = divmod(step, job.steps_an_epoch)
    order = torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(job.params.seed + epoch)
    )
    chosen = order[number * job.params.train_batch : (number + 1) * job.params.train_batch]
    return [rows[index] for index in chosen.tolist()]


def _passes(
    batch: list[tuple["torch.Tensor", "torch.Tensor"]], budget: int
) -> Iterator[list[tuple["torch.Tensor", "torch.Tensor"]]]:
    """The batch in parts of at most `budget` tokens; a longer row is a part of its own."""
    part: list[tuple[torch.Tensor, torch.Tensor]] = []
    size = 0
    for row in sorted(batch, key=lambda row: len(row[0])):
        if part and size + len(row[0]) > budget:
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[0])
    if part:
        yield part


def _step(
    model: Any,
    accelerator: Any,
    batch: list[tuple["torch.Tensor", "torch.Tensor"]],
    budget: int,
) -> tuple[float, int]:
    """Gradients of one optimizer step; its loss per trained token, and its tokens in all."""
    trained = _trained(batch)
    total = 0.0
    for part in _passes(batch, budget):
        loss = _summed(model, part)
        accelerator.backward(loss / trained)
        total += float(loss.detach())
    return total / trained, sum(len(ids) for ids, _ in batch)


def _loss(model: Any, rows: list[tuple["torch.Tensor", "torch.Tensor"]], budget: int) -> float:
    """Loss per trained token of rows that are not learnt from."""
    import torch

    model.eval()
    with torch.no_grad():
        total = sum(float(_summed(model, part)) for part in _passes(rows, budget))
    model.train()
    return total / _trained(rows)


def _trained(rows: list[tuple["torch.Tensor", "torch.Tensor"]]) -> int:
    return sum(int((labels[1:] != MASKED).sum()) for _, labels in rows)


def _summed(model: Any, part: list[tuple["torch.Tensor", "torch.Tensor"]]) -> "torch.Tensor":
    """Loss of the part's trained tokens, summed."""
    import torch

    _Lengths.now = tuple(len(ids) for ids, _ in part)
    ids = torch.cat([ids for ids, _ in part])
    places = torch.cat([torch.arange(length) for length in _Lengths.now])
    # A position's target is the next label of its own row; the last one's is none.
    targets = torch.cat([torch.cat([labels[1:], torch.tensor([MASKED])]) for _, labels in part])
    learnt = (targets != MASKED).nonzero().squeeze(1)
    logits = _logits(model, ids, places, learnt)
    return torch.nn.functional.cross_entropy(logits.float(), targets[learnt], reduction="sum")


def _logits(
    model: Any, ids: "torch.Tensor", places: "torch.Tensor", learnt: "torch.Tensor"
) -> "torch.Tensor":
    """Logits (positions in `learnt`, vocabulary)."""
    inputs = {"input_ids": ids[None], "position_ids": places[None]}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: torch.Tensor = model(**inputs, logits_to_keep=learnt).logits[0]
        return logits
    every: torch.Tensor = model(**inputs).logits[0]
    return every[learnt]


class _States:
    """The newest whole state in `checkpoints/` is where a training goes on."""

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self._folder, self._accelerator = folder, accelerator

    def load(self) -> int:
        """Take over the newest state, if there is one; the steps that were taken."""
        found = checkpoints.newest(self._folder, "CPU")
        if found is None:
            return 0
        self._accelerator.load_state(str(found.folder))
        log.info("going on after step %d", found.step)
        return found.step

    def save(self, step: int) -> None:
        """Keep this state and no older one."""
        with files.writing(checkpoints.state(self._folder, step)):
            folder = checkpoints.begin(self._folder)
            self._accelerator.save_state(str(folder), safe_serialization=True)
            checkpoints.keep(self._folder, step, "CPU")


class _Saver:
    """Keeps after each step what the parameters ask for."""

    def __init__(self, job: Job, states: _States, model: Any) -> None:
        self._job, self._states, self._model = job, states, model
        self._saved = time.monotonic()

    def after(self, step: int) -> None:
        """Save what is due at this point."""
        due = checkpoints.due(self._job, step, seconds=time.monotonic() - self._saved)
        if due.state:
            self._states.save(step)
            self._saved = time.monotonic()
        for name in due.models:
            _save_model(self._model, self._job, self._job.checkpoints / name)


def _save_model(model: Any, job: Job, folder: Path) -> None:
    """Write the weights and config in the base model's own precision."""
    import torch
    from transformers import AutoConfig

    dtype = getattr(AutoConfig.from_pretrained(job.base), "dtype", None) or torch.float32
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    with files.atomic_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state)
        config = json.loads((partial / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        config["use_cache"] = True
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _resume_curve(curve: Path, step: int) -> list[Point]:
    """The points up to `step`; later ones, of an attempt that was killed, are cut off."""
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    points = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # a killed attempt's last line
            points.append(Point(**json.loads(line)))
    points = [point for point in points if point.step <= step]
    files.write(curve, "".join(point.line() for point in points))
    return points


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Let a step end before SIGTERM or Ctrl-C is obeyed: the list then holds the signal."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated
