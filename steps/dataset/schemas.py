"""What a row says by each schema: its chat in canonical form, or the reason why it is refused.

Canonical is a line `{"messages":[...]}`, with `tools` and `unmask` where the row has them. A message
has `role`, `content` (text), `weight` 0 where a turn of the assistant is not to be learnt, and those further
keys that chat templates read; their values are kept byte for byte, because a number that Python reads
and writes again may come out as another text.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import orjson

from steps.dataset.params import Schema

KEYS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""What a row of each schema has; where several fit, the first counts."""
SURPLUS = "cells beyond the header"
"""The key under which a table's row has more cells than there are columns."""

Role = Literal["system", "user", "assistant", "function", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

# What ShareGPT's `from` says, in the data sets of the hub.
_SPEAKERS = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "bot": "assistant",
    "model": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function": "function",
}  # fmt: skip
_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_REASONING = ("reasoning_content", "reasoning", "thinking")

Fields = Mapping[str, msgspec.Raw]


class Fault(Exception):  # noqa: N818  # of the data: it is counted, and shown with its line
    """Why a row is refused."""


class Chat(NamedTuple):
    """A row as it is learnt from."""

    line: bytes
    """Canonical JSON and a newline."""
    roles: tuple[str, ...]
    characters: int
    """Of the contents together."""
    tools: bool
    """Whether any are offered or called."""


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def read(row: bytes, schema: Schema) -> Chat:
    """The chat of a row by the schema, or `auto`, the first that fits. Raises Fault where it is none."""
    try:
        return _read_closely(row, schema)
    except RecursionError:
        raise Fault("nested too deeply") from None


def _read_closely(row: bytes, schema: Schema) -> Chat:
    _validate(row)
    if row.lstrip()[:1] != b"{":
        raise Fault(f"a row must be a JSON object, not {_kind(msgspec.Raw(row.lstrip()))}")
    found = _decode_fields(row)
    fields = {name: raw for name, raw in found.items() if not _is_null(raw)}
    if SURPLUS in fields:
        raise Fault("more cells than columns: a cell with the separator in it must stand in quotes")
    messages = _messages(fields, found, schema)
    roles = tuple(message["role"] for message in messages)
    if problem := order(roles):
        raise Fault(problem)
    if all("weight" in message for message in messages if message["role"] == "assistant"):
        raise Fault("each assistant turn has 'weight' 0: there is nothing to learn")
    chat: dict[str, Any] = {"messages": messages}
    # OpenAI's older key holds the functions bare.
    if tools := _objects(fields, "tools"):
        chat["tools"] = tools
    elif functions := _objects(fields, "functions"):
        chat["tools"] = [_as_function(each, "functions") for each in functions]
    if "unmask" in fields:
        said = _truth(fields["unmask"])
        if said not in (b"true", b"false", b""):
            raise Fault("'unmask' must be true or false")
        if said:
            chat["unmask"] = msgspec.Raw(said)
    return Chat(
        line=_encode(chat) + b"\n",
        roles=roles,
        characters=sum(len(message["content"]) for message in messages),
        tools="tools" in chat or any("tool_calls" in message for message in messages),
    )


def _validate(text: bytes) -> None:
    """Refuse what is not JSON, or not UTF-8, anywhere in it: msgspec skips what nobody asks for."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Fault(_told(text, error)) from None


def _told(text: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8: byte {text[wrong.start]:#04x} at column {wrong.start + 1}"
    if "surrogate" in error.msg:
        return f"half a surrogate pair at column {error.colno}: not a character"
    if "depth" in error.msg or "recursion" in error.msg:
        return "nested too deeply"
    if not text.strip().endswith((b"}", b"]")) and text.lstrip()[:1] in (b"{", b"["):
        return f"not JSON: the line ends early ({error.msg} at column {error.colno})"
    return f"not JSON: {error.msg} at column {error.colno}"


@functools.lru_cache(maxsize=4096)
def order(roles: tuple[str, ...]) -> str | None:
    """What is wrong with the turns as a whole. Rows have few different sequences of roles."""
    if not roles:
        return "'messages' is empty"
    if "assistant" not in roles:
        return "no assistant turn: there is nothing to learn"
    if set(roles) & {"tool", "function"}:
        for before, role in zip(("", *roles), roles, strict=False):
            if role in ("tool", "function") and before not in ("assistant", "tool", "function"):
                return f"a {role} turn follows {before or 'nothing'}: it must answer an assistant's call"
    return None


def _messages(fields: Fields, keys: Iterable[str], schema: Schema) -> list[dict[str, Any]]:
    """The messages by the schema, or the first that fits; `keys` are those of the row, to name them."""
    asked = KEYS if schema == "auto" else (schema,)
    found = next((name for name in asked if all(key in fields for key in KEYS[name])), None)
    if found is None:
        wanted = (
            "'messages' or 'conversations' field"
            if schema == "auto"
            else f"{' and '.join(map(repr, KEYS[schema]))} for the schema {schema}"
        )
        listed = ", ".join(key if key in fields else f"{key} (null)" for key in keys) or "none"
        raise Fault(f"missing {wanted}; the row has the keys: {listed[:300]}")
    if found == "prompt_completion":
        # One part alone may be about messages, as the text that it is.
        if "label" in fields and _truth(fields["label"]) == b"false":
            raise Fault("'label' is false: the completion is one to avoid, not to learn (KTO)")
        both = _are_turns(fields["prompt"]) and _are_turns(fields["completion"])
        turns = _part(fields, "prompt", "user", both) + _part(
            fields, "completion", "assistant", both
        )
    elif found == "alpaca":
        turns = _alpaca(fields)
    else:
        entries = _list(fields[found], found)
        if not entries:
            raise Fault(f"{found!r} is empty")
        turns = [_message(entry, f"{found}[{i}]") for i, entry in enumerate(entries)]
    return _with_system(fields, turns)


def _with_system(fields: Fields, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns after the row's own system prompt, where it has one beside its messages."""
    system = _text(fields["system"], "system") if "system" in fields else ""
    if not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _part(fields: Fields, name: str, role: str, as_turns: bool) -> list[dict[str, Any]]:
    if _kind(fields[name]) == "text" and not as_turns:
        return [{"role": role, "content": _filled(fields[name], name)}]
    return [_message(e, f"{name}[{i}]") for i, e in enumerate(_list(fields[name], name))]


def _are_turns(raw: msgspec.Raw) -> bool:
    """Whether it is a list of messages, which may stand as text."""
    try:
        elements = _list(raw, "")
        fields = [_decode_fields(_unwrapped(each, "", "{")) for each in elements]
    except Fault:
        return False
    return bool(fields) and all("role" in message for message in fields)


def _alpaca(fields: Fields) -> list[dict[str, Any]]:
    turns = []
    for index, pair in enumerate(
        _list(fields["history"], "history") if "history" in fields else []
    ):
        where = f"history[{index}]"
        said = _list(pair, where)
        if len(said) != 2:
            raise Fault(f"{where} must be a question and its answer")
        turns += [
            {"role": role, "content": _filled(text, where)}
            for role, text in zip(("user", "assistant"), said, strict=True)
        ]
    parts = [_text(fields[name], name) for name in ("instruction", "input") if name in fields]
    question = "\n".join(part for part in parts if part.strip())
    if not question:
        raise Fault("'instruction' is empty")
    answer = _filled(fields["output"], "output")
    return [
        *turns,
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def _message(raw: msgspec.Raw, where: str) -> dict[str, Any]:
    found = _decode_fields(_unwrapped(raw, where, "{"))
    entry = {name: value for name, value in found.items() if not _is_null(value)}
    calls = _calls(entry, where)
    if "role" in entry:
        role = said = _text(entry["role"], f"{where}.role")
        role = "system" if role == "developer" else role
        content = entry.get("content")
    elif "from" in entry:
        said = _text(entry["from"], f"{where}.from")
        role = _SPEAKERS.get(said.lower(), said)
        content = entry.get("value")
    else:
        raise Fault(f"{where}: no 'role'; it has the keys: {', '.join(found)[:300] or 'none'}")
    if role not in ROLES:
        raise Fault(f"{where}: invalid role {said[:100]!r}; the roles are {', '.join(ROLES)}")
    if said.lower() == "function_call" and content is not None:
        listed = _kind(content) == "text" and _text(content, where).lstrip()[:1] == "["
        said_calls = _list(content, where) if listed else [content]
        calls = [_as_function(_unwrapped(call, where, "{"), where) for call in said_calls]
        content = None
    message: dict[str, Any] = {"role": role, "content": _content(content, where)}
    for name in _TEXTS:
        if name in entry:
            _text(entry[name], f"{where}.{name}")
            message[name] = entry[name]
    if calls:
        message["tool_calls"] = calls
    if role == "assistant" and "weight" in entry:
        if (weight := bytes(entry["weight"]).strip(b'"')) not in (b"0", b"0.0", b"1", b"1.0"):
            raise Fault(f"{where}.weight must be 0 or 1")
        if weight[:1] == b"0":
            message["weight"] = 0
    if not message["content"].strip():
        # A call and a thought need no words, and a tool may have nothing to say.
        reasons = any(_text(entry[name], name).strip() for name in _REASONING if name in entry)
        if not (
            (role == "assistant" and (calls or reasons))
            or (role in ("tool", "function") and content is not None)
        ):
            what = "null" if content is None else "empty"
            raise Fault(f"{where}: the content of this {role} turn is {what}")
    return message


def _calls(entry: Fields, where: str) -> list[msgspec.Raw]:
    """The tool calls of a turn, OpenAI's older `function_call` among them."""
    if "tool_calls" in entry:
        calls = [_unwrapped(call, where, "{") for call in _list(entry["tool_calls"], where)]
        for call in calls:
            fields = _decode_fields(call)
            _name(_decode_fields(_unwrapped(fields["function"], where, "{"))
                  if "function" in fields else fields, where)  # fmt: skip
        return [_on_a_line(call) for call in calls]
    if "function_call" in entry:
        return [_as_function(_unwrapped(entry["function_call"], where, "{"), where)]
    return []


def _as_function(function: msgspec.Raw, where: str) -> msgspec.Raw:
    """What is offered or called in the form of `tools` and `tool_calls`."""
    _name(_decode_fields(function), where)
    return msgspec.Raw(_encode({"type": "function", "function": _on_a_line(function)}))


def _name(function: Fields, where: str) -> None:
    if "name" not in function or not _text(function["name"], f"{where}: a call's name").strip():
        raise Fault(f"{where}: a tool call without the name of a function")


def _content(raw: msgspec.Raw | None, where: str) -> str:
    """The text of a turn; parts of text are joined. Empty for null."""
    if raw is None:
        return ""
    if _kind(raw) != "a list":
        return _text(raw, f"{where}: the content")
    texts = []
    for part in _decode_elements(raw):
        if _kind(part) == "an object":
            fields = _decode_fields(part)
            kind = _text(fields["type"], f"{where}: a part's type") if "type" in fields else "text"
            if kind != "text":
                raise Fault(
                    f"{where}: a part of the content is of type {kind[:50]!r}: only text counts"
                )
            part = fields.get("text", msgspec.Raw(b"null"))
        texts.append(_text(part, f"{where}: a part of the content"))
    return "".join(texts)


def _objects(fields: Fields, name: str) -> list[msgspec.Raw]:
    """The objects of a list that a row may have."""
    listed = _list(fields[name], name) if name in fields else ()
    return [_on_a_line(_unwrapped(each, name, "{")) for each in listed]


def _list(raw: msgspec.Raw, where: str) -> Sequence[msgspec.Raw]:
    if _kind(raw) == "text" and not _text(raw, where).strip():
        return []
    return _decode_elements(_unwrapped(raw, where, "["))


def _unwrapped(raw: msgspec.Raw, where: str, opening: Literal["{", "["]) -> msgspec.Raw:
    """A list or an object, which may also stand as text: tables have no other way to hold it."""
    wanted = "a list" if opening == "[" else "an object"
    if _kind(raw) == "text":
        text = _text(raw, where).strip().encode()
        if text[:1] == opening.encode():
            try:
                _validate(text)
            except Fault as fault:
                raise Fault(f"{where}: {fault}") from None
            return msgspec.Raw(text)
    if _kind(raw) != wanted:
        raise Fault(f"{where} must be {wanted}, not {_kind(raw)}")
    return raw


def _filled(raw: msgspec.Raw, where: str) -> str:
    text = _text(raw, where)
    if not text.strip():
        raise Fault(f"{where!r} is empty")
    return text


def _text(raw: msgspec.Raw, where: str) -> str:
    if _kind(raw) != "text":
        raise Fault(f"{where} must be text, not {_kind(raw)}")
    text: str = msgspec.json.decode(raw)
    return text


def _truth(raw: msgspec.Raw) -> bytes:
    """`true` or `false`, or whatever else stands there: CSV has text alone."""
    return bytes(raw).strip(b'"').lower()


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _kind(raw: msgspec.Raw) -> str:
    first = bytes(memoryview(raw)[:1])
    kinds = {b'"': "text", b"{": "an object", b"[": "a list", b"t": "true", b"f": "false",
             b"n": "null"}  # fmt: skip
    return kinds.get(first, "a number")


def _on_a_line(raw: msgspec.Raw) -> msgspec.Raw:
    """The same bytes; without the white space between them where that breaks the line."""
    text = bytes(raw)
    if b"\n" in text or b"\r" in text:
        return msgspec.Raw(msgspec.json.format(text, indent=-1))
    return raw
