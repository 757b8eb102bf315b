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


def first_of_equals(digests: "array[int]") -> "NDArray[np.bool_]":
    """Whether a row is the first of its kind."""
    import numpy as np

    every = np.frombuffer(digests, dtype=np.uint64)
    first = np.ones(len(every), dtype=bool)
    # Part by part, so that sorting needs a fraction of the memory.
    part_of = (every >> np.uint64(60)).astype(np.uint8)
    for part in range(_PARTS):
        rows = np.flatnonzero(part_of == part).astype(np.uint32)
        order = np.argsort(every[rows], kind="stable")
        found = every[rows[order]]
        repeated = np.flatnonzero(found[1:] == found[:-1]) + 1
        first[rows[order[repeated]]] = False
    return first


def draw(
    digests: "NDArray[np.uint64]", rows: "NDArray[np.intp]", number: int, seed: int
) -> "NDArray[np.intp]":
    """So many of the rows, chosen by their content and the seed; all where there are no more."""
    import numpy as np

    if number >= len(rows):
        return rows
    keys = _shuffled(digests[rows], seed, _SUBSET)
    last = np.partition(keys, number)[number]
    chosen = keys < last
    # Of equal rows, the first ones.
    chosen[np.flatnonzero(keys == last)[: number - int(chosen.sum())]] = True
    drawn: NDArray[np.intp] = rows[chosen]
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

    rows = np.flatnonzero(candidates)
    every = np.frombuffer(digests, dtype=np.uint64)
    if subset:
        rows = draw(every, rows, subset, seed)
    held_out = len(rows) - rows_to_train(len(rows), ratio)
    verdicts = np.full(len(every), LEFT, dtype=np.uint8)
    verdicts[rows] = TRAIN
    verdicts[rows[_smallest(_shuffled(every[rows], seed, _SPLIT), held_out)]] = EVAL
    return verdicts


def rows_to_train(rows: int, ratio: float) -> int:
    """The ratio of the rows as one would reckon by hand, a half rounded up.

    By the decimal number that the user wrote: 0.7 of 10 is 7, which it is not in binary.
    """
    share = math.floor(rows * Fraction(str(ratio)) + Fraction(1, 2))
    if ratio < 1 and rows > 1:
        return min(max(share, 1), rows - 1)
    return max(share, min(rows, 1))


def _smallest(keys: "NDArray[np.uint64]", number: int) -> "NDArray[np.bool_]":
    """Which keys are the `number` smallest, or about so many, so that equal keys do not part."""
    import numpy as np

    if number == 0:
        return np.zeros(len(keys), dtype=bool)
    last = np.partition(keys, number - 1)[number - 1]
    more: NDArray[np.bool_] = keys <= last
    surplus = int(more.sum()) - number
    if not surplus:
        return more
    fewer: NDArray[np.bool_] = keys < last
    missing = number - int(fewer.sum())
    return fewer if more.all() or missing < min(surplus, number) else more


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
