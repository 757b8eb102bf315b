"""From a source to both splits: fetch, check every row, choose, write."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from steps import files, logs, record
from steps.dataset import chats, intake, output, reader, split
from steps.dataset.intake import Checked, Intake
from steps.dataset.params import DatasetParams
from steps.dataset.pieces import Unit
from steps.dataset.rejects import Rejects
from steps.dataset.sources import DataFile, Fetched, open_source
from steps.entrypoint import Run
from steps.errors import DataError, TransientError
from steps.progress import progress
from steps.record import Asset, Result

log = logging.getLogger(__name__)

_FIRST_ROWS = 20


def prepare(params: DatasetParams, run: Run) -> Result:
    """Make both splits from the source.

    Raises DataError where a row is invalid (unless they are skipped), or none is there.
    """
    workspace, uri = run.workspace, logs.public_uri(params.data_uri)
    source = open_source(params, run)
    with _scratch(run) as scratch, contextlib.ExitStack() as stack:
        fetched = source.fetch(scratch / "source")
        rejects = Rejects(uri)
        files.remove(workspace.rejected_rows)
        if params.on_invalid == "skip":
            rejects.keep(stack.enter_context(files.atomic(workspace.rejected_rows)))
        # hashlib lets other threads run, so digests cost little beside the reading.
        with ThreadPoolExecutor(1) as beside:
            digests = [beside.submit(_sha256, file) for file in fetched.files]
            found = _take_in(fetched, scratch / "spool", rejects)
        if source.asset() != run.inputs["source"]:
            raise TransientError(f"{uri}: it changed while it was read; run the same command again")
        rejects.refuse(found, skip=params.on_invalid == "skip")
        distinct = split.first_of_equals(found.kept.digests)
        verdicts = split.choose(
            found.kept.digests,
            distinct,
            subset=params.subset,
            ratio=params.data_split,
            seed=params.seed,
        )
        outputs = output.write_splits(found, verdicts, workspace)
        sources = [
            _described(file, done.result())
            for file, done in zip(fetched.files, digests, strict=True)
        ]
    if params.on_invalid == "skip":
        outputs["rejected"] = Asset.of(workspace.rejected_rows, workspace)
    metrics = {
        "rows_read": found.rows,
        "rows_train": int((verdicts == split.TRAIN).sum()),
        "rows_eval": int((verdicts == split.EVAL).sum()),
        "rows_rejected": found.rejected,
        "rows_duplicate": int((~distinct).sum()),
    }
    log.info("%s", ", ".join(f"{name.removeprefix('rows_')} {n:,}" for name, n in metrics.items()))
    return Result(
        outputs=outputs,
        metrics=dict(metrics),
        results={"rows-train": str(metrics["rows_train"]), "rows-eval": str(metrics["rows_eval"])},
        versions=record.versions("msgspec", "numpy", "orjson", "pyarrow", "xxhash"),
        details={
            "source": {"uri": uri, "revision": fetched.revision, "files": sources},
            "statistics": statistics(found),
        },
    )


def refuse_bad_beginnings(here: Sequence[DataFile]) -> None:
    """Raise DataError where the first rows of the first file cannot be learnt from."""
    for file in here[:1]:
        rejects = Rejects(file.name)
        for piece in islice(reader.pieces(file.name, file.path), 1):
            for number, row in enumerate(piece.rows()[:_FIRST_ROWS]):
                try:
                    if row.strip():
                        chats.read(row)
                except chats.Fault as fault:
                    rejects.show(file.name, piece.unit, number, str(fault))
        rejects.refuse_shown()


def statistics(found: Intake) -> dict[str, Any]:
    """Lengths, roles and shares, over all valid rows, for the report."""
    import numpy as np

    def spread(values: Any) -> dict[str, int]:
        # Nearest rank: each is a length that some row has.
        ranks = np.quantile(values, [0, 0.5, 0.95, 1], method="inverted_cdf")
        names = ("minimum", "median", "p95", "maximum")
        return {name: int(value) for name, value in zip(names, ranks, strict=True)}

    rows = len(found.kept.digests)
    return {
        "characters": spread(np.frombuffer(found.kept.characters, dtype=np.uint32)),
        "turns": spread(np.frombuffer(found.kept.turns, dtype=np.uint16)),
        "roles": dict(found.roles.most_common()),
        "with_system": round(found.with_system / rows, 4),
        "with_tools": round(found.with_tools / rows, 4),
    }


def _take_in(fetched: Fetched, spool: Path, rejects: Rejects) -> Intake:
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    size = sum(file.path.stat().st_size for file in fetched.files)
    pieces = (
        (file.name, piece)
        for file in fetched.files
        for piece in reader.pieces(file.name, file.path)
    )
    with progress("reading", size, "bytes") as shown:
        done = 0

        def on_piece(name: str, unit: Unit, before: int, checked: Checked) -> None:
            nonlocal done
            rejects.add(name, unit, before, checked)
            done += checked.size
            shown.update(min(done, size))

        return intake.take_in(pieces, spool, size=size, on_piece=on_piece)


def _sha256(file: DataFile) -> str:
    return file.sha256 or files.sha256(file.path)


def _described(file: DataFile, sha256: str) -> dict[str, Any]:
    size = file.path.stat().st_size
    return {"name": file.name, "bytes": size, "sha256": sha256, "etag": file.etag}


@contextlib.contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """A folder for downloads and the spool; what a killed attempt of the same work left is in it."""
    folder = run.workspace.train_rows.parent
    mine = folder / f".work-{run.fingerprint[:16]}"
    for other in folder.glob(".work-*"):
        if other != mine:
            shutil.rmtree(other)
    mine.mkdir(parents=True, exist_ok=True)
    try:
        yield mine
    except DataError:
        # Whoever puts better data to the same place must not be given the old again.
        shutil.rmtree(mine)
        raise
    except BaseException:
        # Downloads are worth keeping; the spool is quickly made again, and the disk may be full.
        shutil.rmtree(mine / "spool", ignore_errors=True)
        raise
    shutil.rmtree(mine)
