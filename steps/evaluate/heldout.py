"""The held-out rows: the loss of the true answers, and the answers that a model writes itself."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from steps.chat_template import TemplateError
from steps.errors import DataError, InvalidRowError
from steps.evaluate.language_model import Row, answers, load, loss
from steps.progress import progress
from steps.tokens import ChatTokenizer, Prompt

log = logging.getLogger(__name__)

# An answer may be twice as long as what is expected, and some tokens more: beyond that it is wrong
# whatever follows, and a base model that never stops would take for ever.
_TIMES_EXPECTED, _MORE_TOKENS = 2, 16


class Question(NamedTuple):
    """An assistant turn to be written, and the most tokens that may be."""

    row: int
    """Line of eval.jsonl, counted from 1."""
    prompt: Prompt
    limit: int


class Scores(NamedTuple):
    """What results.json holds of one model; None where no answers were asked for."""

    loss: float
    """Mean negative log-likelihood in nats of the tokens that count, over all rows."""
    perplexity: float | None
    exact_match: float | None
    """Share of the answers that equal what is expected, but for white space around them."""
    chrf: float | None
    """sacrebleu's corpus chrF2, 0 to 100."""
    rows: int
    tokens: int


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows as tokens and as questions, the same for every model that is scored."""

    path: Path
    rows: list[Row]
    questions: list[Question]
    tokenizer: ChatTokenizer

    @property
    def highest(self) -> int:
        """The largest token id in the rows."""
        return max(int(row.ids.max()) for row in self.rows)


def read(path: Path, tokens: Path | None, tokenizer: ChatTokenizer, limit: int) -> HeldOut:
    """Read the held-out rows, and make questions of `limit` of them (-1: of all).

    `tokens` is the file that training made of the same rows; without it they are tokenised here.
    The rows for the questions are spread evenly, so the same ones are taken every time. Raises
    InvalidRowError where the chat template refuses a row.
    """
    import orjson

    chats = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    rows = _read_tokens(tokens) if tokens else _tokenise(path, chats, tokenizer)
    if len(rows) != len(chats):
        raise DataError(
            f"{tokens}: has {len(rows):,} rows where {path} has {len(chats):,}; "
            "run the train step again"
        )
    count = len(chats) if limit < 0 else min(limit, len(chats))
    chosen = [number * len(chats) // count for number in range(count)]
    questions = [q for index in chosen for q in _questions(path, index, chats[index], tokenizer)]
    return HeldOut(path, rows, questions, tokenizer)


def score(
    held_out: HeldOut, model: Path, name: str, rows_a_batch: int | None
) -> tuple[Scores, list[str]]:
    """The model's scores, and its answers to the questions.

    `name` is how the log calls the model. Raises DataError where its loss is not a number.
    """
    loaded = load(model)
    with progress(f"held-out loss, {name} model", len(held_out.rows), "rows") as shown:
        total, tokens = loss(loaded, held_out.rows, rows_a_batch, shown)
    if tokens == 0:
        raise DataError(f"{held_out.path}: no token of the held-out rows counts in the loss")
    mean = total / tokens
    if not math.isfinite(mean):
        raise DataError(f"{model}: the held-out loss is {mean}: some weights are not numbers")
    texts: list[str] = []
    if held_out.questions:
        with progress(f"answers, {name} model", len(held_out.questions), "answers") as shown:
            written = answers(
                loaded,
                [question.prompt.ids for question in held_out.questions],
                [question.limit for question in held_out.questions],
                held_out.tokenizer.stop_ids,
                rows_a_batch,
                shown,
            )
        texts = [held_out.tokenizer.decode(ids) for ids in written]
    exact, chrf = _compare(texts, [q.prompt.expected for q in held_out.questions])
    scores = Scores(
        loss=mean,
        perplexity=math.exp(mean) if mean < math.log(1e300) else None,
        exact_match=exact,
        chrf=chrf,
        rows=len(held_out.rows),
        tokens=tokens,
    )
    log.info(
        "%s model: held-out loss %.4f over %s tokens of %s rows%s",
        name,
        mean,
        f"{tokens:,}",
        f"{len(held_out.rows):,}",
        "" if exact is None else f", exact match {exact:.3f}, chrF {chrf:.1f}",
    )
    return scores, texts


def samples(held_out: HeldOut, texts: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """The questions with the answer of every model, as samples.jsonl holds them."""
    for index, question in enumerate(held_out.questions):
        yield {
            "row": question.row,
            "turn": question.prompt.turn,
            "prompt": question.prompt.messages,
            "expected": question.prompt.expected,
            **{name: answers[index] for name, answers in texts.items()},
        }


def _read_tokens(path: Path) -> list[Row]:
    import orjson
    import torch

    with path.open("rb") as lines:
        read = (orjson.loads(line) for line in lines)
        return [Row(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in read]


def _tokenise(path: Path, chats: list[Any], tokenizer: ChatTokenizer) -> list[Row]:
    import torch

    try:
        encoded = tokenizer.encode(chats)
    except TemplateError as error:
        message, index = error.args
        raise InvalidRowError(path, index + 1, message) from error
    return [Row(torch.tensor(row.ids), torch.tensor(row.labels)) for row in encoded]


def _questions(path: Path, index: int, chat: Any, tokenizer: ChatTokenizer) -> Iterator[Question]:
    try:
        prompts = tokenizer.prompts(chat)
    except TemplateError as error:
        raise InvalidRowError(path, index + 1, str(error)) from error
    for prompt in prompts:
        limit = _TIMES_EXPECTED * tokenizer.count(prompt.expected) + _MORE_TOKENS
        yield Question(index + 1, prompt, limit)


def _compare(texts: list[str], expected: list[str]) -> tuple[float | None, float | None]:
    """Exact match and chrF; None for both where there are no answers."""
    from sacrebleu import corpus_chrf

    if not texts:
        return None, None
    equal = sum(
        text.strip() == wanted.strip() for text, wanted in zip(texts, expected, strict=True)
    )
    return equal / len(texts), corpus_chrf(texts, [expected]).score
