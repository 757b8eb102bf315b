"""Several addresses in one parameter, each with a weight if need be: `0.7*hf://org/a 0.3*/data/b`.

Addresses may hold blanks, as keys of S3 do, so a blank alone separates nothing: a new line does, and
a blank before a scheme, a slash, or (where the first address has one) a weight. No address by
itself begins with a weight.
"""

import re
from typing import NamedTuple

_WEIGHT = r"(?:\d+\.?\d*|\.\d+)\*"
_SCHEME = r"[A-Za-z][\w+.-]*://"
_ADDRESS = re.compile(rf"({_WEIGHT})?(.*)", re.DOTALL)
_PLAIN = re.compile(rf"(\s*\n\s*|\s+(?=/|(?:{_WEIGHT})?{_SCHEME}))")
_WEIGHTED = re.compile(rf"(\s*\n\s*|\s+(?=/|{_WEIGHT}|{_SCHEME}))")


class Address(NamedTuple):
    """One of them."""

    uri: str
    weight: str
    """A decimal number; empty where none is given."""


def split(text: str) -> list[Address]:
    """The addresses in their order."""
    return [_parsed(part) for part in parts(text.strip())[::2]] if text.strip() else []


def parts(text: str) -> list[str]:
    """Addresses with their weights, and in turn with them the white space that separates them."""
    separator = _WEIGHTED if re.match(rf"\s*{_WEIGHT}", text) else _PLAIN
    return separator.split(text)


def _parsed(part: str) -> Address:
    found = _ADDRESS.fullmatch(part)
    assert found is not None  # it matches everything
    return Address(found[2], (found[1] or "").removesuffix("*"))
