"""Which rows are trained on, which are held out, and which are left out.

A row's place follows from its content and the seed alone: neither the order of the rows nor the
number of processes matters, equal rows never part, and when a data set grows, most rows stay on
their side.
"""

import math
from array import array
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEFT, TRAIN, EVAL = 0, 1, 2

_MASK = (1 << 64) - 1
_SUBSET, _SPLIT = 1, 2
_PARTS = 16
_PART = 1 << 16
"""Rows."""


def first_of_equals(digests: "array[int]") -> "NDArray[np.bool_]":
    """Whether a row is the first of its kind."""
    import numpy as np

    every = np.frombuffer(digests, dtype=np.uint64)
    first = np.ones(len(every), dtype=bool)
    # Part by part, so that sorting needs a fraction of the memory.
    part_of = np.empty(len(every), dtype=np.uint8)
    np.right_shift(every, np.uint64(60), out=part_of, casting="unsafe")
    for part in range(_PARTS):
        rows = np.flatnonzero(part_of == part).astype(np.uint32)
        order = np.argsort(every[rows], kind="stable")
        found = every[rows[order]]
        repeated = np.flatnonzero(found[1:] == found[:-1]) + 1
        first[rows[order[repeated]]] = False
    return first


def draw(
    digests: "NDArray[np.uint64]", among: "NDArray[np.bool_]", number: int, seed: int
) -> "NDArray[np.bool_]":
    """So many of the rows `among` all, chosen by their content and the seed; all if there are no more."""
    import numpy as np

    if number >= np.count_nonzero(among):
        return among
    if not number:
        return np.zeros_like(among)
    drawn, copies = _smallest(digests, among, number, seed=seed, purpose=_SUBSET)
    surplus = int(np.count_nonzero(drawn)) - number
    if surplus:
        drawn[np.flatnonzero(copies)[-surplus:]] = False
    return drawn


def choose(
    digests: "array[int]",
    candidates: "NDArray[np.bool_]",
    *,
    subset: int,
    ratio: float,
    seed: int,
) -> "NDArray[np.uint8]":
    """LEFT, TRAIN or EVAL for each row: `ratio` of `subset` (0: all) of the candidates to train on.

    Both sides get a row wherever there are two different ones and the ratio is below 1. Equal rows
    never part: where a side's last row has copies, the numbers are as near as that allows.
    """
    import numpy as np

    every = np.frombuffer(digests, dtype=np.uint64)
    left = draw(every, candidates, subset, seed) if subset else candidates
    verdicts = np.where(left, np.uint8(TRAIN), np.uint8(LEFT))
    rows = int(np.count_nonzero(left))
    number = rows - rows_to_train(rows, ratio)
    if number:
        held_out, copies = _smallest(every, left, number, seed=seed, purpose=_SPLIT)
        surplus = int(np.count_nonzero(held_out)) - number
        missing = int(np.count_nonzero(copies)) - surplus
        if surplus and (number + surplus == rows or missing < min(surplus, number)):
            held_out &= ~copies
        verdicts[held_out] = EVAL
    return verdicts


def rows_to_train(rows: int, ratio: float) -> int:
    """The ratio of the rows as one would reckon by hand, a half rounded up.

    By the decimal number that the user wrote: 0.7 of 10 is 7, which it is not in binary.
    """
    share = math.floor(rows * Fraction(str(ratio)) + Fraction(1, 2))
    if ratio < 1 and rows > 1:
        return min(max(share, 1), rows - 1)
    return max(share, min(rows, 1))


def _smallest(
    digests: "NDArray[np.uint64]",
    among: "NDArray[np.bool_]",
    number: int,
    *,
    seed: int,
    purpose: int,
) -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """Which `number` of the rows `among` all come first when these are shuffled by the seed.

    Copies of the last of these are all among them; which rows are such copies comes second.

    In parts: with millions of rows, each array of numbers as large as theirs counts.
    """
    import numpy as np

    parts = [slice(start, start + _PART) for start in range(0, len(digests), _PART)]
    keys = np.empty(np.count_nonzero(among), dtype=np.uint64)
    end = 0
    for part in parts:
        some = _shuffled(digests[part][among[part]], seed, purpose)
        keys[end : end + len(some)] = some
        end += len(some)
    keys.partition(number - 1)
    last = keys[number - 1]
    chosen, copies = among.copy(), among.copy()
    for part in parts:
        some = _shuffled(digests[part], seed, purpose)
        chosen[part] &= some <= last  # only equal rows have equal keys
        copies[part] &= some == last
    return chosen, copies


def _shuffled(digests: "NDArray[np.uint64]", seed: int, purpose: int) -> "NDArray[np.uint64]":
    """A number for each digest that looks random, distinct where they are.

    The finalizer of splitmix64 (https://prng.di.unimi.it/splitmix64.c), which is a bijection, so
    there are no ties, and no library's next version can change the split.
    """
    import numpy as np

    key = np.array([(seed * 2 + purpose) * 0x9E3779B97F4A7C15 & _MASK], dtype=np.uint64)
    mixed = digests ^ _mixed(key)
    return _mixed(mixed)


def _mixed(numbers: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    import numpy as np

    numbers = numbers ^ (numbers >> np.uint64(30))
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
