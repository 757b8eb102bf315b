"""Rows of any schema to chats, counted: what becomes of each row, and its digest and lengths.

Most rows are canonical chats of text, or nearly so; they are read here, at the speed that the step is
measured by. All others are read closely, by `schemas`.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import msgspec
import xxhash

from steps.dataset import schemas
from steps.dataset.params import Schema
from steps.dataset.pieces import LONGEST_ROW
from steps.dataset.schemas import Role

_MOST_TURNS = 0xFFFF
"""As many as two bytes can tell."""
_USUAL_TURNS = 64
"""Chats of more are looked at closely, which costs them little beside their length."""
_SHOWN_OF_LONG = 1000
"""Bytes of a row that is too long."""

_FIRST_KEY = len('{"messages":[{"')
_BESIDE_CONTENT: dict[str, int] = {
    role: len(f'{{"role":"{role}","content":""}},') for role in schemas.ROLES
}
_R_OF_ROLE = ord("r")

NO_CHAT, AS_IS, REWRITTEN = 0, 1, 2
"""What became of a row: it is blank or refused, it is canonical as it stands, it had to be changed."""


class Rejected(NamedTuple):
    """A row that is refused."""

    line: int
    """Its number, from 0."""
    reason: str
    row: bytes
    """Of one that is too long, the beginning."""


@dataclass
class Kept:
    """What is known of the rows that are kept: the arrays have an entry for each, in their order."""

    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of the canonical rows: equal for equal rows."""
    characters: "array[int]" = field(default_factory=lambda: array("I"))
    """Of the contents together."""
    turns: "array[int]" = field(default_factory=lambda: array("H"))

    def extend(self, more: "Kept") -> None:
        """Take over the entries of later rows."""
        self.digests.extend(more.digests)
        self.characters.extend(more.characters)
        self.turns.extend(more.turns)


@dataclass
class Chats:
    """What was found in rows."""

    places: bytearray = field(default_factory=bytearray)
    """NO_CHAT, AS_IS or REWRITTEN for each row."""
    rewritten: list[bytes] = field(default_factory=list)
    """Canonical JSON and a newline for each row that is REWRITTEN."""
    kept: Kept = field(default_factory=Kept)
    rejected: list[Rejected] = field(default_factory=list)
    roles: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """How many chats have this sequence of roles."""
    with_tools: int = 0
    """Chats in which tools are offered or called."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Role
    content: Annotated[str, msgspec.Meta(min_length=1)]


class _Plain(msgspec.Struct, gc=False, omit_defaults=True):
    """What most rows are: messages of text. Keys of no meaning here are skipped without a look."""

    messages: Annotated[list[_Message], msgspec.Meta(max_length=_USUAL_TURNS)]
    # Those that have a meaning are left to the closer reading: this one takes only null.
    system: None = None
    tools: None = None
    functions: None = None
    unmask: None = None


class _Opening(dict[str, "_Opening"]):
    """Chats that begin with the same roles; those that go on are found by their next role.

    Following a chat through this tree takes half the time of counting tuples of roles.
    """

    __slots__ = ("chats", "empty", "fault", "roles", "turn")

    def __init__(self, *roles: str) -> None:
        self.roles = roles
        self.fault = schemas.order(roles)
        """What is wrong with a chat that ends here."""
        self.chats = 0
        """Chats that do."""
        beside = [_BESIDE_CONTENT[role] for role in roles]
        self.turn = sum(beside[-1:])
        """Bytes that canonical JSON has beside the last turn's content."""
        self.empty = _FIRST_KEY + sum(beside)
        """Where the next turn's first key would stand, if all contents were empty."""

    def __missing__(self, role: str) -> "_Opening":
        self[role] = longer = _Opening(*self.roles, role)
        return longer


_decode_plain = msgspec.json.Decoder(_Plain).decode
_encode_into = msgspec.json.Encoder().encode_into
_digest = xxhash.xxh3_64_intdigest
_NOTHING = _Plain([])


def read(rows: Iterable[bytes], schema: Schema = "auto", *, rewrite: bool = False) -> Chats:
    """The chats of rows of JSON; `auto` takes the schema that a row's keys tell.

    A row that cannot be learnt from, or is of another schema, is rejected. Each row ends with a
    newline; else with `rewrite`, by which each chat is REWRITTEN: for rows that stand in no file as
    they are given here.
    """
    found = Chats()
    places, rewritten = found.places, found.rewritten
    digests, characters, turns = found.kept.digests, found.kept.characters, found.kept.turns
    start = _Opening()
    decode = _decode_plain if schema in ("auto", "messages") else _decode_nothing
    encoded = bytearray()  # one for all: most rows are canonical, and need no bytes of their own
    # The step's time is spent here, so a row as most are is read without a call of ours, and let go
    # before the next takes its place in the processor's cache.
    for number, row in enumerate(rows):
        if len(row) > LONGEST_ROW:
            places.append(NO_CHAT)
            reason = f"longer than {LONGEST_ROW >> 20} MiB"
            found.rejected.append(Rejected(number, reason, row[:_SHOWN_OF_LONG]))
            continue
        try:
            plain = decode(row)
        except (ValueError, RecursionError):  # of msgspec and of UTF-8
            plain = _NOTHING
        # Where the next turn's first key stands, and after the last turn the row ends, if the row is
        # canonical and has a byte a character: no JSON of these turns is shorter, so a row that ends
        # there is canonical, and need not be written again to be compared.
        said, at, in_order = start, _FIRST_KEY, True
        for message in plain.messages:
            content = message.content
            if content.isspace():
                break
            if row[at] != _R_OF_ROLE:
                in_order = False
            said = said[message.role]
            at += said.turn + len(content)
        else:
            if not said.fault:
                as_is = at == len(row) and in_order and not rewrite
                if not as_is:
                    _encode_into(plain, encoded)
                    encoded += b"\n"
                    as_is = encoded == row and not rewrite
                if as_is or row.isascii() or _is_utf8(row):
                    if as_is:
                        places.append(AS_IS)
                        digests.append(_digest(row))
                    else:
                        places.append(REWRITTEN)
                        line = bytes(encoded)
                        rewritten.append(line)
                        digests.append(_digest(line))
                    characters.append(at - said.empty)
                    turns.append(len(said.roles))
                    said.chats += 1
                    continue
        if not row or row.isspace():
            places.append(NO_CHAT)
            continue
        try:
            chat = schemas.read(row, schema)
        except schemas.Fault as fault:
            places.append(NO_CHAT)
            found.rejected.append(Rejected(number, str(fault), row.rstrip(b"\r\n")))
            continue
        if chat.line == row and not rewrite:
            places.append(AS_IS)
        else:
            places.append(REWRITTEN)
            rewritten.append(chat.line)
        digests.append(_digest(chat.line))
        characters.append(chat.characters)
        turns.append(min(len(chat.roles), _MOST_TURNS))
        found.roles[chat.roles] += 1
        found.with_tools += chat.tools
    openings = [start]
    for said in openings:
        openings += said.values()
        if said.chats:
            found.roles[said.roles] += said.chats
    return found


def _is_utf8(row: bytes) -> bool:
    """Whether all of it is: what msgspec skips, it does not look at."""
    try:
        row.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode_nothing(_row: bytes) -> _Plain:
    return _NOTHING
