"""The rows that are refused: told, counted, and put aside where asked for."""

import logging
from collections.abc import Sequence
from typing import IO

from steps.dataset.chats import Rejected
from steps.dataset.pieces import Unit
from steps.dataset.selection import Portion
from steps.errors import DataError

log = logging.getLogger(__name__)

SHOWN = 20
"""Faults that a message shows; all are counted."""


class Rejects:
    """The rows that are refused: the first are told, all are counted, and kept where asked for."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._file: IO[bytes] | None = None

    def keep(self, file: IO[bytes]) -> None:
        """Write each into the file, with its place and the reason."""
        self._file = file

    def add(self, name: str, unit: Unit, before: int, rejected: Sequence[Rejected]) -> None:
        """Take those of one piece."""
        import orjson

        for line, reason, row in rejected:
            self.show(name, unit, before + line, reason)
            if self._file:
                try:
                    shown = orjson.loads(row)
                except orjson.JSONDecodeError:
                    shown = row.decode("utf-8", "backslashreplace")
                told = {"file": name, "line": before + line + 1, "reason": reason, "row": shown}
                self._file.write(orjson.dumps(told) + b"\n")

    def show(self, name: str, unit: Unit, number: int, reason: str) -> None:
        """Tell of a row, its number from 0, if not enough have been told."""
        if len(self._shown) < SHOWN:
            place = f"{name}:{number + 1}" if unit == "line" else f"{name}: row {number + 1}"
            self._shown.append(f"{place}: {reason}")

    def refuse(self, portions: Sequence[Portion], *, skip: bool) -> None:
        """Raise DataError where rows are invalid and not to be skipped, or where a source has none."""
        for portion in portions:
            if not portion.rows:
                raise DataError(f"{portion.uri}: the data set is empty: there is no row in it")
        rejected = sum(portion.rejected for portion in portions)
        rows = sum(portion.rows for portion in portions)
        if rejected and skip:
            log.warning("%d of %d rows are skipped: %s", rejected, rows, self._told())
        if rejected and not skip:
            raise DataError(
                f"{self._told(rejected)}\n{rejected:,} of {rows:,} rows are invalid: "
                "correct them, or set --on-invalid skip to leave them out"
            )
        for portion in portions:
            if not portion.kept:
                raise DataError(f"{self._told()}\n{portion.uri}: no row is valid")

    def refuse_shown(self) -> None:
        """Raise DataError where any row was told of."""
        if self._shown:
            raise DataError(f"{self._told()}\ncorrect it, or set --on-invalid skip to leave it out")

    def _told(self, number: int = 0) -> str:
        more = number - len(self._shown)
        return "\n".join([*self._shown, *([f"and {more:,} more"] if more > 0 else [])])
