"""A causal language model at work: the loss of given tokens, and greedy answers to prompts.

In fp32 on a CPU and in bf16 on CUDA, the loss in fp32 on both. Batches hold rows of like length,
the longest first, so that a GPU's memory is too small at once or not at all.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steps import weights
from steps.errors import ConfigError
from steps.progress import Progress
from steps.tokens import MASKED

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Tokens of a batch where the user gives no number of rows. On a CPU more are no faster; on a GPU
# the logits of as many positions are what its memory has to hold.
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 2048, 8192
_ANSWER_TOKENS_ON_CPU, _ANSWER_TOKENS_ON_GPU = 4096, 65536

# Positions whose logits are made fp32 at a time: with 150 thousand words in the vocabulary, 0.6 GB.
_POSITIONS = 1024


class Row(NamedTuple):
    """Token ids, and the labels that count: MASKED elsewhere."""

    ids: "torch.Tensor"
    labels: "torch.Tensor"


class Loss(NamedTuple):
    """Negative log-likelihood in nats, summed over the labels that count."""

    total: float
    tokens: int


def load(path: Path) -> Any:
    """The model of a folder, on the CUDA devices if there are any, else on the CPU.

    Several devices share its layers. Raises what `steps.weights.load` raises.
    """
    import torch

    gpus = torch.cuda.device_count()
    model = weights.load(
        path,
        dtype=torch.bfloat16 if gpus else torch.float32,
        device_map="auto" if gpus > 1 else "cuda:0" if gpus else "cpu",
    )
    return model.eval()


def loss(model: Any, rows: Sequence[Row], rows_a_batch: int | None, shown: Progress) -> Loss:
    """The summed loss of all rows; `rows_a_batch` None fits the batches to the device."""
    import torch

    rows = _within(model, rows)
    counted = [row for row in rows if (row.labels[1:] != MASKED).any()]
    sizes = [len(row.ids) for row in counted]
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    budget = _TOKENS_ON_GPU if torch.cuda.is_available() else _TOKENS_ON_CPU
    total, tokens, done = 0.0, 0, len(rows) - len(counted)
    with torch.inference_mode(), memory_errors():
        for batch in _batches(order, sizes, rows_a_batch, budget):
            part = _batch_loss(model, [counted[index] for index in batch])
            total, tokens, done = total + part.total, tokens + part.tokens, done + len(batch)
            shown.update(done, loss=f"{total / tokens:.4f}")
    return Loss(total, tokens)


def answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    stop_ids: Sequence[int],
    rows_a_batch: int | None,
    shown: Progress,
) -> list[list[int]]:
    """The most likely continuation of each prompt: up to a stop token, or `limits` tokens long.

    The model's own generation config counts for nothing: no sampling, no penalties.
    """
    import torch
    from transformers import GenerationConfig

    padding = stop_ids[0] if stop_ids else 0
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=padding
    )
    prompts, limits = _with_room(model, prompts, limits)
    sizes = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    # A batch takes as long as its longest answer, so answers of like length stand together.
    order = sorted(range(len(sizes)), key=lambda index: (limits[index], sizes[index]), reverse=True)
    budget = _ANSWER_TOKENS_ON_GPU if torch.cuda.is_available() else _ANSWER_TOKENS_ON_CPU
    found: list[list[int]] = [[] for _ in prompts]
    done = 0
    with torch.inference_mode(), memory_errors():
        for batch in _batches(order, sizes, rows_a_batch, budget):
            width = max(len(prompts[index]) for index in batch)
            ids = torch.full((len(batch), width), padding)
            mask = torch.zeros_like(ids)
            for line, index in enumerate(batch):
                # Padding stands on the left: what is generated follows the prompt at once.
                ids[line, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[line, width - len(prompts[index]) :] = 1
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max(limits[index] for index in batch),
            )
            for index, line in zip(batch, written[:, width:].tolist(), strict=True):
                found[index] = list(takewhile(lambda t: t not in stop_ids, line[: limits[index]]))
            done += len(batch)
            shown.update(done)
    return found


def _batches(
    order: Sequence[int], sizes: Sequence[int], rows: int | None, tokens: int
) -> Iterator[list[int]]:
    """`order` in parts of `rows` rows, or of as many as fit into `tokens` with their padding."""
    batch: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, sizes[index])
        if batch and (len(batch) == rows if rows else (len(batch) + 1) * longest > tokens):
            yield batch
            batch, longest = [], sizes[index]
        batch.append(index)
    if batch:
        yield batch


def _batch_loss(model: Any, rows: Sequence[Row]) -> Loss:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([row.ids for row in rows], batch_first=True)
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    # A position's target is the next token's label.
    targets = pad_sequence([row.labels[1:] for row in rows], batch_first=True, padding_value=MASKED)
    positions = (targets != MASKED).any(dim=0).nonzero().squeeze(1)
    logits = _logits(model, ids.to(model.device), mask.to(model.device), positions)
    targets = targets[:, positions]
    counted = targets != MASKED
    targets = targets[counted].to(logits.device)
    logits = logits[counted.to(logits.device)]
    total = 0.0
    for first in range(0, len(targets), _POSITIONS):
        part = slice(first, first + _POSITIONS)
        total += float(cross_entropy(logits[part].float(), targets[part], reduction="sum"))
    return Loss(total, len(targets))


def _logits(
    model: Any, ids: "torch.Tensor", mask: "torch.Tensor", positions: "torch.Tensor"
) -> "torch.Tensor":
    """Logits (rows, positions, vocabulary); only those positions pass the LM head where they can."""
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept: torch.Tensor = model(**inputs, logits_to_keep=positions.to(ids.device)).logits
        return kept
    every: torch.Tensor = model(**inputs).logits
    return every[:, positions.to(every.device)]


def _within(model: Any, rows: Sequence[Row]) -> list[Row]:
    """The rows, cut where the model has no further positions."""
    most = weights.positions(model)
    cut = [row for row in rows if most is not None and len(row.ids) > most]
    if cut:
        log.warning("%d rows are scored up to token %s: the model reads no further", len(cut), most)
    return [Row(row.ids[:most], row.labels[:most]) for row in rows]


def _with_room(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> tuple[list[Sequence[int]], list[int]]:
    """Prompts and limits of which any two fit together into the model's positions.

    A prompt keeps its end.
    """
    most = weights.positions(model)
    if most is None:
        return list(prompts), list(limits)
    longest = min(max(limits), most // 2)
    return [prompt[longest - most :] for prompt in prompts], [min(n, longest) for n in limits]


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Explain a GPU memory that does not suffice (ConfigError)."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError("the GPU's memory is too small: give a smaller --batch") from error


def release() -> None:
    """Give back the memory of a model that is no longer referred to."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
