"""Chats as token ids and labels: what training learns from and what the evaluation scores.

Ids and labels equal those of instructlab-training 0.16 (`data_process.unmask_messages`) wherever
that library's are defined: the words of the assistant count in the loss, with their reasoning and
all that follows up to the end-of-sequence token. Where it fails, this module differs, and so:

- A turn that ends with another token than the tokenizer's end of sequence (a base model's
  tokenizer with a chat template) has that token in the loss, or the model would never stop.
- A template that rewrites the assistant's words (drops earlier reasoning, splits at `</think>`)
  is rendered all the same; the turn counts from its header on.
- `tools` are rendered, as they are when the model is used.
- A turn of the assistant with `weight` 0 is neither learnt nor scored.

Nothing here imports torch; transformers is imported once, to load the tokenizer.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steps.chat_template import ChatTemplate, Message, TemplateError
from steps.errors import DataError, volume_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MASKED = -100
"""Label of a token that does not count in the loss (torch's cross entropy ignores it)."""

# Special tokens that wrap what is to be learnt while a chat is rendered; none stays in the ids.
_BEGIN, _END = "<|sft-begin|>", "<|sft-end|>"
_REASON, _REASONED = "<|sft-reason|>", "<|sft-reasoned|>"
_MARKERS = (_BEGIN, _END, _REASON, _REASONED)
_CLOSES = {_END: _BEGIN, _REASONED: _REASON}
_MARKER = re.compile("|".join(map(re.escape, _MARKERS)))


class Encoded(NamedTuple):
    """One chat: `ids` and `labels` of equal length."""

    ids: list[int]
    labels: list[int]
    """The ids that count in the loss; MASKED elsewhere."""
    turns: int
    """The assistant's turns."""
    stops: int
    """How many of them have their end-of-turn token in the loss."""
    calls: int
    """Calls of tools in those turns."""
    calls_lost: int
    """How many of them are not in the loss: the chat template leaves them out."""

    @property
    def trained(self) -> int:
        """Tokens that count in the loss. The first token has nothing before it to learn from."""
        return sum(label != MASKED for label in self.labels[1:])


class Prompt(NamedTuple):
    """One assistant turn to be generated, with the true conversation before it."""

    turn: int
    messages: list[Message]
    ids: list[int]
    expected: str


# What templates of reasoning models put before a turn without a thought; it is not trained on.
_EMPTY_THOUGHT = re.compile(r"\A\s*(<think>\s*)?(</think>\s*)?")


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template. Can be pickled, so other processes can work with it."""

    tokenizer_json: str
    template: ChatTemplate
    eos_token: str | None

    @classmethod
    def load(cls, model: Path, chat_template: Path | None = None) -> "ChatTokenizer":
        """The tokenizer of a model's folder, as transformers builds it.

        transformers may replace parts of `tokenizer.json` by those of the architecture (Qwen2's
        pre-tokenizer, for one), and what serves the model does the same, so its word counts.
        Raises DataError where there is no fast tokenizer or no chat template.
        """
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(model)
        except Exception as error:  # of a broken file the tokenizers library says so by this alone
            raise volume_error(error) or DataError(
                f"{model}: the tokenizer cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if not getattr(loaded, "is_fast", False):
            raise DataError(f"{model}: there is no tokenizer.json, nor a way to make one")
        source = read_template(chat_template) if chat_template else loaded.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if not source:
            raise DataError(
                f"{model}: the tokenizer has no chat template; "
                "give one with --chat-template (phase_02_train_opt_chat_template)"
            )
        template = ChatTemplate(source, loaded.special_tokens_map)
        template.check()
        return cls(loaded.backend_tokenizer.to_str(), template, loaded.eos_token)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Ids and labels of each row (`messages`, and `tools` and `unmask` where it has them).

        Raises TemplateError, with the row's index in `args[1]`, where the template does not
        render a row or leaves nothing of what is to be learnt.
        """
        texts = [self._marked(row, index) for index, row in enumerate(rows)]
        encodings = self._marking.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._masked(encoding.ids, row, index)
            for index, (encoding, row) in enumerate(zip(encodings, rows, strict=True))
        ]

    def prompts(self, row: Mapping[str, Any]) -> list[Prompt]:
        """Every assistant turn of a row as a prompt with the answer that is expected."""
        messages, tools = row["messages"], row.get("tools")
        found = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or not _counts(message):
                continue
            history = messages[:turn]
            text = self.template.render(history, tools, generation_prompt=True)
            ids = self._plain.encode(text, add_special_tokens=False).ids
            found.append(Prompt(turn, history, ids, self._expected(messages, turn, tools, text)))
        return found

    def count(self, text: str) -> int:
        """How many tokens the text is."""
        return len(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, with special tokens only where they are asked for."""
        return self._plain.decode(list(ids), skip_special_tokens=not special)

    @functools.cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end an assistant turn: the end of sequence and the template's own."""
        return sorted({token for token in (self._eos, self._end_of_turn) if token is not None})

    @functools.cached_property
    def _plain(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def _marking(self) -> "Tokenizer":
        """The tokenizer with the markers; a copy, since they must never be in the model's."""
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens(
            [AddedToken(marker, special=True, normalized=False) for marker in _MARKERS]
        )
        return tokenizer

    @functools.cached_property
    def _eos(self) -> int | None:
        return self._plain.token_to_id(self.eos_token) if self.eos_token else None

    @functools.cached_property
    def _end_of_turn(self) -> int | None:
        """The special token that the template puts after the assistant's words, if any."""
        text = self.template.render(
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": f"{_BEGIN}!{_END}"},
            ]
        )
        ids = self._marking.encode(text, add_special_tokens=False).ids
        end = self._marking.token_to_id(_END)
        special = {
            number
            for number, token in self._plain.get_added_tokens_decoder().items()
            if token.special
        }
        after = ids[ids.index(end) + 1 :] if end in ids else []
        return next((token for token in after if token in special), None)

    def _marked(self, row: Mapping[str, Any], index: int) -> str:
        """The rendered chat with markers around what is to be learnt."""
        messages, tools = row["messages"], row.get("tools")
        learnt = _learnt_roles(row)
        wrapped = [_wrap(m) if m["role"] in learnt and _counts(m) else m for m in messages]
        try:
            text = self.template.render(wrapped, tools)
            if _is_balanced(text):
                return text
            return self._marked_by_header(messages, tools)
        except TemplateError as error:
            raise TemplateError(str(error), index) from error

    def _marked_by_header(self, messages: Sequence[Message], tools: Any) -> str:
        """The same where the template rewrites the words: a turn is learnt from its header on."""
        ended = [
            {**m, "content": m["content"] + _END} if m["role"] == "assistant" and _counts(m) else m
            for m in messages
        ]
        text = self.template.render(ended, tools)
        pieces = text.split(_END)
        header = self.template.header
        marked = []
        for piece in pieces[:-1]:
            start = piece.rfind(header) + len(header)
            if not header or start < len(header):
                raise TemplateError("the chat template hides where an assistant turn begins")
            marked.append(piece[:start] + _BEGIN + piece[start:])
        return _END.join([*marked, pieces[-1]])

    def _masked(self, marked: list[int], row: Mapping[str, Any], index: int) -> Encoded:
        begin, end, reason, reasoned = map(self._marking.token_to_id, _MARKERS)
        ids: list[int] = []
        regions: list[tuple[int, int, bool]] = []  # start, end, whether it is reasoning
        start = 0
        for token in marked:
            if token in (begin, reason):
                start = len(ids)
            elif token in (end, reasoned):
                regions.append((start, len(ids), token == reasoned))
            else:
                ids.append(token)
        regions = _merged(regions)
        if not regions:
            raise TemplateError("the chat template renders no assistant turn", index)
        learnt = _learnt_roles(row)
        roles = [m["role"] for m in row["messages"] if m["role"] in learnt and _counts(m)]
        labels = [MASKED] * len(ids)
        turns = stops = 0
        for number, (first, last, _) in enumerate(regions):
            following = regions[number + 1][0] if number + 1 < len(regions) else len(ids)
            # Regions and roles agree unless the template drops turns; then all are the assistant's.
            if len(roles) != len(regions) or roles[number] == "assistant":
                turns += 1
                stop = self._stop(ids, last, following)
                if stop is not None:
                    last, stops = stop + 1, stops + 1
            labels[first:last] = ids[first:last]
        calls = _called(row["messages"])
        lost = self._left_out(calls, labels) if calls else 0
        return Encoded(ids, labels, turns, stops, len(calls), lost)

    def _left_out(self, calls: Sequence[str], labels: Sequence[int]) -> int:
        """How many of the calls are not in what is learnt, known by the names of their functions."""
        learnt = [label for label in labels if label != MASKED]
        text = self.decode(learnt, special=True)
        return sum(max(0, calls.count(name) - text.count(name)) for name in set(calls))

    def _stop(self, ids: list[int], start: int, end: int) -> int | None:
        """Where the turn's last token is: the end of sequence, else the template's own."""
        for token in (self._eos, self._end_of_turn):
            if token is not None:
                try:
                    return ids.index(token, start, end)
                except ValueError:
                    continue
        return None

    def _expected(self, messages: Sequence[Message], turn: int, tools: Any, prompt: str) -> str:
        """What the model should write: the turn's words, or its tool call as the template has it."""
        message = messages[turn]
        if message.get("tool_calls"):
            whole = self.template.render(messages[: turn + 1], tools)
            if whole.startswith(prompt):
                ids = self._plain.encode(whole[len(prompt) :], add_special_tokens=False).ids
                stop = self._stop(ids, 0, len(ids))
                return _EMPTY_THOUGHT.sub("", self.decode(ids[:stop]))
        return str(message["content"])


def read_template(path: Path) -> str:
    """The text of a chat template's file (DataError where it cannot be read)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the chat template cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the chat template cannot be read: {error}") from error
    if not text.strip():
        raise DataError(f"{path}: the chat template is empty")
    return text


def use_all_cores() -> None:
    """Let `encode` work on all cores: the tokenizers library asks for it by name."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"


def _called(messages: Sequence[Message]) -> list[str]:
    """The names of the functions that the assistant calls, once a call."""
    calls = [
        call
        for message in messages
        if message["role"] == "assistant" and _counts(message)
        for call in message.get("tool_calls") or ()
    ]
    return [(call.get("function") or call)["name"] for call in calls]


def _learnt_roles(row: Mapping[str, Any]) -> set[str]:
    """The assistant; everyone but the system in a row that says `unmask`."""
    if row.get("unmask"):
        return {message["role"] for message in row["messages"]} - {"system"}
    return {"assistant"}


def _counts(message: Message) -> bool:
    """Whether the turn is learnt and scored if its role is."""
    return bool(message.get("weight", 1))


def _wrap(message: Message) -> Message:
    wrapped = dict(message)
    wrapped["content"] = f"{_BEGIN}{message['content']}{_END}"
    for name in ("reasoning_content", "thinking"):
        if message.get(name) is not None:
            wrapped[name] = f"{_REASON}{message[name]}{_REASONED}"
    return wrapped


def _is_balanced(text: str) -> bool:
    """Whether every marker that the template left opens and closes a region in turn."""
    opened = None
    found = False
    for marker in _MARKER.findall(text):
        if _CLOSES.get(marker) != opened:
            return False
        found = found or marker in _CLOSES
        opened = None if marker in _CLOSES else marker
    return found and opened is None


def _merged(regions: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Reasoning and the words that follow it are one region: what stands between is learnt too."""
    merged: list[tuple[int, int, bool]] = []
    for start, end, is_reasoning in regions:
        if merged and merged[-1][2] and not is_reasoning:
            merged[-1] = (merged[-1][0], end, False)
        else:
            merged.append((start, end, is_reasoning))
    return merged
