"""The chosen rows from the spool to train.jsonl and eval.jsonl."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

from steps import files
from steps.dataset.intake import Intake
from steps.dataset.split import EVAL, TRAIN
from steps.record import Asset
from steps.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Writing:
    """A file of the workspace while it is written, and its digest."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def asset(self, workspace: Workspace) -> Asset:
        """The file as the record names it."""
        path = self.path.relative_to(workspace.root).as_posix()
        return Asset(path=path, bytes=self._size, sha256=self._digest.hexdigest())


def write_splits(
    intake: Intake, verdicts: "NDArray[np.uint8]", workspace: Workspace
) -> dict[str, Asset]:
    """Write both splits, their rows in the order of the input; what they are, by name."""
    with ExitStack() as stack:
        writing = {
            TRAIN: _open(workspace.train_rows, stack),
            EVAL: _open(workspace.eval_rows, stack),
        }
        _distribute(intake, verdicts, writing)
    return {
        "train": writing[TRAIN].asset(workspace),
        "eval": writing[EVAL].asset(workspace),
    }


def _open(path: Path, stack: ExitStack) -> Writing:
    return Writing(path, stack.enter_context(files.atomic(path)))


def _distribute(intake: Intake, verdicts: "NDArray[np.uint8]", writing: dict[int, Writing]) -> None:
    import numpy as np

    lengths = np.frombuffer(intake.kept.lengths, dtype=np.uint32)
    first = 0
    for segment in intake.segments:
        rows = slice(first, first + segment.rows)
        first += segment.rows
        ends = np.cumsum(lengths[rows], dtype=np.int64)
        with segment.spool.open("rb") as spool:
            spool.seek(segment.offset)
            data = memoryview(spool.read(int(ends[-1])))
        # Neighbours that go to the same place are copied as one.
        chosen = verdicts[rows]
        turns = np.flatnonzero(chosen[1:] != chosen[:-1]) + 1
        begins = [0, *turns.tolist()]
        stops = [0, *ends[[*(turns - 1).tolist(), len(chosen) - 1]].tolist()]
        for place, out in writing.items():
            parts = [
                data[stops[run] : stops[run + 1]]
                for run, begin in enumerate(begins)
                if chosen[begin] == place
            ]
            if parts:
                out.write(b"".join(parts))
