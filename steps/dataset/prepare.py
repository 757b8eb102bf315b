"""From a source to both splits: fetch, check every row, choose, write."""

import contextlib
import logging
import os
import shutil
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import files, record, report
from steps.dataset import chats, intake, output, reader, split
from steps.dataset.intake import Checked, Intake
from steps.dataset.params import DatasetParams, Schema
from steps.dataset.pieces import Block, Range, Unit
from steps.dataset.rejects import Rejects
from steps.dataset.selection import Portion, select
from steps.dataset.sources import DataFile, Fetched, Opened, open_sources
from steps.entrypoint import Run
from steps.errors import DataError, TransientError
from steps.progress import progress
from steps.record import Asset, Result

if TYPE_CHECKING:
    from concurrent.futures import Executor

log = logging.getLogger(__name__)

_FIRST_ROWS = 20


def prepare(params: DatasetParams, run: Run) -> Result:
    """Make both splits from the sources.

    Raises DataError where a row is invalid (unless they are skipped), or none is there.
    """
    # Numpy would start a thread a core for linear algebra, of which there is none here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    workspace, opened = run.workspace, open_sources(params, run)
    with _scratch(run) as scratch, contextlib.ExitStack() as stack:
        fetched = {name: one.source.fetch(scratch / name) for name, one in opened.items()}
        rejects = Rejects()
        files.remove(workspace.rejected_rows)
        if params.on_invalid == "skip":
            rejects.keep(stack.enter_context(files.atomic(workspace.rejected_rows)))
        size = sum(file.path.stat().st_size for one in fetched.values() for file in one.files)
        with intake.workers(size) as pool:
            # Threads come after the workers, which are forked, and end after the writing.
            beside = ThreadPoolExecutor(2)
            # Whoever stops the step need not wait for the digests.
            stopped = threading.Event()
            stack.callback(beside.shutdown, cancel_futures=True)
            stack.callback(stopped.set)
            if pool:
                beside.submit(_load_numpy)
            portions = [Portion(one.uri, one.weight, one.held_out) for one in opened.values()]
            found = _take_in(
                list(fetched.values()),
                portions,
                scratch / "spool",
                size=size,
                schema=params.chat_schema,
                rejects=rejects,
                pool=pool,
            )
        _refuse_changed(opened, run)
        rejects.refuse(portions, skip=params.on_invalid == "skip")
        # Beside the writing, which leaves cores idle as the reading does not.
        digests = {
            file.path: beside.submit(_sha256, file, stopped)
            for one in fetched.values()
            for file in one.files
        }
        beside.submit(report.template)
        selection = select(found.kept.digests, portions, params)
        verdicts = selection.verdicts
        outputs = output.write_splits(found, verdicts, workspace)
        sha256 = {path: done.result() for path, done in digests.items()}
        _refuse_changed(opened, run)
        described = _described(opened, fetched, sha256)
    if params.on_invalid == "skip":
        outputs["rejected"] = Asset.of(workspace.rejected_rows, workspace)
    metrics = {
        "rows_read": found.rows,
        "rows_train": int((verdicts == split.TRAIN).sum()),
        "rows_eval": int((verdicts == split.EVAL).sum()),
        "rows_rejected": found.rejected,
        "rows_duplicate": selection.duplicates,
    }
    arrow = ["pyarrow"] if "pyarrow" in sys.modules else []
    log.info("%s", ", ".join(f"{name.removeprefix('rows_')} {n:,}" for name, n in metrics.items()))
    return Result(
        outputs=outputs,
        metrics=dict(metrics),
        results={"rows-train": str(metrics["rows_train"]), "rows-eval": str(metrics["rows_eval"])},
        versions=record.versions("msgspec", "numpy", "orjson", *arrow, "xxhash"),
        details={**described, "statistics": statistics(found)},
    )


def refuse_bad_beginnings(here: Sequence[DataFile], schema: Schema) -> None:
    """Raise DataError where the first rows of the first file cannot be learnt from."""
    for file in here[:1]:
        rejects = Rejects()
        for piece in islice(reader.pieces(file.name, file.path), 1):
            rows = piece.rows()[:_FIRST_ROWS]
            for number, reason, _ in chats.read(rows, schema, rewrite=True).rejected:
                rejects.show(file.name, piece.unit, number, reason)
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


def _take_in(
    fetched: Sequence[Fetched],
    portions: Sequence[Portion],
    spool: Path,
    *,
    size: int,
    schema: Schema,
    rejects: Rejects,
    pool: "Executor | None",
) -> Intake:
    """Check the rows of all sources, and count those of each in its portion."""
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    origins: deque[int] = deque()  # of the pieces that are on their way

    def pieces() -> Iterator[tuple[str, Block | Range]]:
        for index, one in enumerate(fetched):
            for file in one.files:
                for piece in reader.pieces(file.name, file.path):
                    origins.append(index)
                    yield file.name, piece

    with progress("reading", size, "bytes") as shown:
        done = 0
        lines: Counter[tuple[int, str]] = Counter()

        def on_piece(name: str, unit: Unit, checked: Checked) -> None:
            nonlocal done
            index = origins.popleft()
            rejects.add(name, unit, lines[index, name], checked.chats.rejected)
            lines[index, name] += checked.lines
            portions[index].kept += len(checked.chats.kept.digests)
            portions[index].rejected += len(checked.chats.rejected)
            done += checked.size
            shown.update(min(done, size))

        return intake.take_in(pieces(), spool, schema=schema, on_piece=on_piece, pool=pool)


def _refuse_changed(opened: Mapping[str, Opened], run: Run) -> None:
    """Raise TransientError where a source is no longer what the step began with."""
    for name, one in opened.items():
        if one.source.asset() != run.inputs[name]:
            raise TransientError(
                f"{one.uri}: it changed while it was read; run the same command again"
            )


def _load_numpy() -> None:
    """Load what is needed after the reading, while other processes do that."""
    import numpy  # noqa: F401


def _sha256(file: DataFile, stopped: threading.Event) -> str:
    return file.sha256 or files.sha256(file.path, stopped)


def _described(
    opened: Mapping[str, Opened], fetched: Mapping[str, Fetched], sha256: Mapping[Path, str]
) -> dict[str, Any]:
    """What was read, for the record: one source as itself, several as a list."""
    details: dict[str, Any] = {}
    for title, held_out in (("source", False), ("eval_source", True)):
        sources = [
            {
                "uri": one.uri,
                "revision": fetched[name].revision,
                "files": [_file(file, sha256[file.path]) for file in fetched[name].files],
                **({"weight": float(one.weight)} if one.weight else {}),
            }
            for name, one in opened.items()
            if one.held_out is held_out
        ]
        if len(sources) == 1:
            details[title] = sources[0]
        elif sources:
            details[f"{title}s"] = sources
    return details


def _file(file: DataFile, sha256: str) -> dict[str, Any]:
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
