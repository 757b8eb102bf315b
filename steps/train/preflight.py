"""Whether a base model can be trained on chats, told before any time is spent on it."""

from pathlib import Path
from typing import Any

from steps import weights
from steps.chat_template import TemplateError
from steps.errors import DataError
from steps.tokens import ChatTokenizer
from steps.train.tokenize import Counts, NeverStopsError

_SAMPLE = {
    "messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
    ]
}


def check(base: Path, chat_template: Path | None) -> None:
    """Raise DataError where the model or its tokenizer cannot be loaded, or a chat not be rendered.

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


def refuse_unreadable(model: Any, base: Path, rows: Path, counts: Counts) -> None:
    """Raise DataError where rows have tokens that the model does not know, or more than it reads."""
    weights.refuse_unknown(model, base, counts.highest)
    most = weights.positions(model)
    if most is not None and counts.longest > most:
        raise DataError(
            f"{rows}: a row has {counts.longest:,} tokens, and {base} reads {most:,} at most; "
            f"leave longer rows out by --max-seq-len {most}"
        )
