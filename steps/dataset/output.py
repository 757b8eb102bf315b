"""The chosen rows to train.jsonl and eval.jsonl."""

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from steps import files
from steps.dataset.chats import NO_CHAT
from steps.dataset.intake import Intake, SpooledRows
from steps.dataset.split import EVAL, LEFT, TRAIN
from steps.record import Asset
from steps.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_AHEAD = 4
"""Writes that the digest may lag behind; they are held in memory."""
_LEAST = 1 << 20
"""Bytes that are worth a write: the rows held out of one piece are few."""
_BEFORE_SYNC = 128 << 20
"""Bytes that are worth sending to the disk: left for the end, all of them would be waited for."""


class Writing:
    """A file of the workspace while it is written, and its digest."""

    def __init__(
        self, path: Path, file: IO[bytes], hashing: ThreadPoolExecutor, syncing: ThreadPoolExecutor
    ) -> None:
        self.path, self._file, self._hashing, self._syncing = path, file, hashing, syncing
        self._digest, self._size = hashlib.sha256(), 0
        self._sync: Future[None] | None = None
        self._sent = 0
        self._lagging: deque[Future[None]] = deque()
        self._waiting: list[bytes] = []
        self._waiting_size = 0

    def write(self, rows: Sequence[bytes]) -> None:
        """Append the rows, which end with a newline each."""
        self._waiting += rows
        self._waiting_size += sum(map(len, rows))
        if self._waiting_size >= _LEAST:
            with files.naming(self.path):
                self._write()

    def finish(self) -> None:
        """Write what still waits."""
        with files.naming(self.path):
            self._write()
            self._synced()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_size = 0
        # hashlib lets other threads run: the digest is made beside the reading of what comes next.
        self._lagging.append(self._hashing.submit(self._digest.update, data))
        self._file.write(data)
        self._size += len(data)
        if self._size - self._sent >= _BEFORE_SYNC and (self._sync is None or self._sync.done()):
            self._synced()
            self._sync = self._syncing.submit(os.fdatasync, self._file.fileno())
            self._sent = self._size
        if len(self._lagging) > _AHEAD:
            self._lagging.popleft().result()

    def _synced(self) -> None:
        """Raise OSError where the disk did not take what was sent: the system says so only once."""
        if self._sync:
            self._sync.result()

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
        paths = (workspace.train_rows, workspace.eval_rows)
        opened = [stack.enter_context(files.atomic(path)) for path in paths]
        # One thread for the digests, so that a file's bytes come to its own in their order.
        hashing, syncing = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        train, held_out = (
            Writing(path, file, hashing, syncing) for path, file in zip(paths, opened, strict=True)
        )
        _distribute(intake, verdicts, {TRAIN: train, EVAL: held_out})
        train.finish()
        held_out.finish()
    return {"train": train.asset(workspace), "eval": held_out.asset(workspace)}


def _distribute(intake: Intake, verdicts: "NDArray[np.uint8]", writing: dict[int, Writing]) -> None:
    import numpy as np

    first = 0
    with SpooledRows() as spooled:
        for segment in intake.segments:
            lines = np.frombuffer(segment.places, dtype=np.uint8) != NO_CHAT
            last = first + int(np.count_nonzero(lines))
            chosen = np.full(len(lines), LEFT, dtype=np.uint8)
            chosen[lines] = verdicts[first:last]
            first = last
            rows = segment.rows(spooled)
            for place, out in writing.items():
                out.write([*compress(rows, (chosen == place).tobytes())])
