"""The chosen rows to train.jsonl and eval.jsonl."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from steps import files
from steps.dataset.intake import NOWHERE, Intake
from steps.dataset.split import EVAL, LEFT, TRAIN
from steps.record import Asset
from steps.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_AHEAD = 4
"""Writes that the digest may lag behind; they are held in memory."""
_LEAST = 256 << 10
"""Bytes that are worth a write: the rows held out of one piece are few."""


class Writing:
    """A file of the workspace while it is written, and its digest."""

    def __init__(self, path: Path, file: IO[bytes], beside: ThreadPoolExecutor) -> None:
        self.path, self._file, self._beside = path, file, beside
        self._digest, self._size = hashlib.sha256(), 0
        self._lagging: deque[Future[None]] = deque()
        self._waiting: list[bytes] = []
        self._waiting_size = 0

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size >= _LEAST:
            self._write()

    def finish(self) -> None:
        """Write what still waits."""
        self._write()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_size = 0
        # hashlib lets other threads run: the digest is made beside the reading of what comes next.
        self._lagging.append(self._beside.submit(self._digest.update, data))
        self._file.write(data)
        self._size += len(data)
        if len(self._lagging) > _AHEAD:
            self._lagging.popleft().result()

    def asset(self, workspace: Workspace) -> Asset:
        """The file as the record names it."""
        while self._lagging:
            self._lagging.popleft().result()
        path = self.path.relative_to(workspace.root).as_posix()
        return Asset(path=path, bytes=self._size, sha256=self._digest.hexdigest())


def write_splits(
    intake: Intake, verdicts: "NDArray[np.uint8]", workspace: Workspace
) -> dict[str, Asset]:
    """Write both splits, their rows in the order of the input; what they are, by name.

    Raises TransientError where a file is no longer what was checked.
    """
    with ExitStack() as stack:
        # One thread, so that a file's bytes come to its digest in their order.
        beside = stack.enter_context(ThreadPoolExecutor(1))
        train, held_out = (
            Writing(path, stack.enter_context(files.atomic(path)), beside)
            for path in (workspace.train_rows, workspace.eval_rows)
        )
        _distribute(intake, verdicts, {TRAIN: train, EVAL: held_out})
        train.finish()
        held_out.finish()
    return {"train": train.asset(workspace), "eval": held_out.asset(workspace)}


def _distribute(intake: Intake, verdicts: "NDArray[np.uint8]", writing: dict[int, Writing]) -> None:
    import numpy as np

    first = 0
    for segment in intake.segments:
        lines = np.frombuffer(segment.places, dtype=np.uint8) != NOWHERE
        last = first + int(np.count_nonzero(lines))
        chosen = np.full(len(lines), LEFT, dtype=np.uint8)
        chosen[lines] = verdicts[first:last]
        first = last
        rows = segment.rows()
        for place, out in writing.items():
            if taken := list(compress(rows, (chosen == place).tobytes())):
                out.write(b"".join(taken))
