"""Full states of a training, and when to keep what: the same on CPU and GPU, but for what is in a state.

A state is a folder `state-<step>` in `checkpoints/`. It is written under another name and renamed
when all of it is on the disk, and its last file says how large the others are: a state that was cut
off, or an entry that something else has left there, is never taken for one, nor is that of other
hardware (`--launcher auto` may turn out otherwise elsewhere). Only the newest is kept.
"""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steps import files
from steps.train.backend import Job

log = logging.getLogger(__name__)

Hardware = Literal["CPU", "GPU"]

_NAME = re.compile(r"state-(\d{9,})")
_POSITION = "position.json"


@dataclass(frozen=True)
class State:
    """A whole state: everything that a training needs to go on."""

    folder: Path
    step: int
    """Optimizer steps that were taken."""


def newest(checkpoints: Path, by: Hardware) -> State | None:
    """The state to go on from, if there is one; that of other hardware has other parts."""
    for folder, step in sorted(_states(checkpoints), key=lambda found: -found[1]):
        if _is_whole(folder, step, by):
            return State(folder, step)
        log.warning("%s is not a whole state of a training on a %s: passed over", folder, by)
    return None


def state(checkpoints: Path, step: int) -> Path:
    """The folder of the state after so many steps."""
    return checkpoints / f"state-{step:09d}"


def partial(checkpoints: Path) -> Path:
    """The folder in which a state or a model is written before it takes its place."""
    return checkpoints / ".partial"


def begin(checkpoints: Path) -> Path:
    """That folder, empty: what a killed attempt left in it is removed."""
    folder = partial(checkpoints)
    files.remove(folder)
    folder.mkdir(parents=True)
    return folder


def keep(checkpoints: Path, step: int, by: Hardware) -> None:
    """Make what was written the state after `step`, and remove the older ones."""
    folder = partial(checkpoints)
    _sync(folder)
    position = {"step": step, "bytes": files.size(folder), "by": by}
    files.write(folder / _POSITION, json.dumps(position))
    target = state(checkpoints, step)
    files.replace_folder(folder, target)
    for older, _ in _states(checkpoints):
        if older != target:
            files.remove(older)
    log.info("checkpoint after step %d", step)


def _states(checkpoints: Path) -> list[tuple[Path, int]]:
    if not checkpoints.is_dir():
        return []
    named = ((path, _NAME.fullmatch(path.name)) for path in checkpoints.iterdir())
    return [(path, int(found[1])) for path, found in named if found]


def _is_whole(folder: Path, step: int, by: Hardware) -> bool:
    try:
        told = json.loads((folder / _POSITION).read_bytes())
        size = files.size(folder) - (folder / _POSITION).stat().st_size
        return bool(told == {"step": step, "bytes": size, "by": by})
    except (OSError, ValueError):
        return False


def _sync(folder: Path) -> None:
    """Have the bytes on the disk before the name is: a node may lose its power."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@dataclass(frozen=True)
class Due:
    """What is to be kept after a step."""

    state: bool
    models: tuple[str, ...]
    """Names of the folders for the model as it is now. The final model is not among them."""


def due(job: Job, step: int, *, seconds: float) -> Due:
    """What the parameters ask for after `step`, `seconds` after the last state was kept."""
    params = job.params
    samples = job.samples(step)
    of_epoch = step % job.steps_an_epoch == 0
    crossed = bool(params.save_samples) and (
        samples // params.save_samples > job.samples(step - 1) // params.save_samples
    )
    late = bool(params.checkpoint_minutes) and seconds >= 60 * params.checkpoint_minutes
    models = []
    if step < job.steps:  # the final model is published as such
        if of_epoch and params.save_epoch:
            models.append(f"epoch-{step // job.steps_an_epoch}")
        if crossed:
            models.append(f"samples-{samples}")
    return Due(of_epoch or crossed or late, tuple(models))
