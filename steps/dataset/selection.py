"""Which rows of which source are trained on: duplicates, the mix, the subset and the split."""

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from steps.dataset import split
from steps.dataset.params import DatasetParams
from steps.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass
class Portion:
    """What came from one source. The rows of each follow those of the one before."""

    uri: str
    """As messages name it: without secrets."""
    weight: str = ""
    held_out: bool = False
    """Whether it is an eval set, of which nothing is trained on."""
    kept: int = 0
    rejected: int = 0

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return self.kept + self.rejected


@dataclass(frozen=True)
class Selection:
    """What becomes of each row."""

    verdicts: "NDArray[np.uint8]"
    """split.LEFT, TRAIN or EVAL."""
    duplicates: int
    """Rows left out because an equal one is there, or is held out."""


def select(digests: "array[int]", portions: Sequence[Portion], params: DatasetParams) -> Selection:
    """Choose among the rows of all sources. Eval sets come before what is trained on.

    Raises DataError where nothing is left to train on.
    """
    import numpy as np

    every = np.frombuffer(digests, dtype=np.uint64)
    begin = sum(portion.kept for portion in portions if portion.held_out)
    if params.deduplicate == "exact":
        unique = split.first_of_equals(digests)
    else:
        unique = ~_among(every, every[:begin])
        unique[:begin] = True
    candidates = unique.copy()
    candidates[:begin] = False
    mixed = [portion for portion in portions if not portion.held_out]
    if mixed[0].weight:
        candidates = _mixed(every, candidates, begin, mixed, params)
    verdicts = split.choose(
        digests,
        candidates,
        subset=params.subset,
        ratio=1.0 if params.eval_uri else params.data_split,
        seed=params.seed,
    )
    verdicts[:begin][unique[:begin]] = split.EVAL
    if not (verdicts == split.TRAIN).any():
        raise DataError(
            f"{', '.join(portion.uri for portion in mixed)}: nothing is left to train on: "
            "each row is in the eval set too"
        )
    return Selection(verdicts, int((~unique).sum()))


def shares(available: Sequence[int], weights: Sequence[str], limit: int = 0) -> list[int]:
    """How many rows to take of each source, so that their numbers are as the weights.

    As many as there are without repeating a row, at most `limit` (0: no limit).
    """
    parts = [Fraction(weight) for weight in weights]
    whole = sum(parts)
    total = min(int(rows * whole / part) for rows, part in zip(available, parts, strict=True))
    if limit:
        total = min(total, limit)
    exact = [total * part / whole for part in parts]
    numbers = [int(share) for share in exact]
    # The largest remainders are rounded up, until the numbers add up; an earlier source wins a tie.
    by_remainder = sorted(range(len(parts)), key=lambda i: numbers[i] - exact[i])
    for index in by_remainder[: total - sum(numbers)]:
        numbers[index] += 1
    return numbers


def _mixed(
    every: "NDArray[np.uint64]",
    candidates: "NDArray[np.bool_]",
    begin: int,
    portions: Sequence[Portion],
    params: DatasetParams,
) -> "NDArray[np.bool_]":
    """The candidates that the weights allow; those of `portions` lie from `begin` on."""
    import numpy as np

    rows = []
    for portion in portions:
        end = begin + portion.kept
        rows.append(np.zeros_like(candidates))
        rows[-1][begin:end] = candidates[begin:end]
        begin = end
    available = [int(np.count_nonzero(found)) for found in rows]
    numbers = shares(available, [portion.weight for portion in portions], params.subset)
    if not sum(numbers):
        least = min(range(len(rows)), key=lambda i: available[i] / Fraction(portions[i].weight))
        raise DataError(
            f"{portions[least].uri}: too few rows for its weight ({available[least]:,} that no other "
            "source has): nothing can be mixed; give it a smaller weight, or leave it out"
        )
    if params.subset > sum(numbers):
        log.warning("a mix by these weights has only %s rows", f"{sum(numbers):,}")
    chosen = np.zeros_like(candidates)
    for i, portion in enumerate(portions):
        log.info("%s: %s of %s rows are taken", portion.uri, f"{numbers[i]:,}", f"{available[i]:,}")
        chosen |= split.draw(every, rows[i], numbers[i], params.seed)
    return chosen


def _among(digests: "NDArray[np.uint64]", others: "NDArray[np.uint64]") -> "NDArray[np.bool_]":
    """Which of the digests are among the others."""
    import numpy as np

    if not len(others):
        return np.zeros(len(digests), dtype=bool)
    known = np.unique(others)
    places = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    found: NDArray[np.bool_] = known[places] == digests
    return found
