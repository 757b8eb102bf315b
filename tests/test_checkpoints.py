"""Full states of a training: which one is gone on from, which are kept, and when one is due."""

from pathlib import Path
from typing import Any

import pytest

from steps.train import checkpoints
from steps.train.backend import Job
from steps.train.checkpoints import Due
from steps.train.params import TrainParams


def saved(folder: Path, step: int) -> Path:
    place = checkpoints.begin(folder)
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "optimizer.bin").write_bytes(b"moments")
    checkpoints.keep(folder, step, "CPU")
    return folder / f"state-{step:09d}"


def test_only_the_newest_state_is_kept_and_only_when_it_is_whole(tmp_path: Path) -> None:
    first = saved(tmp_path, 5)
    (checkpoints.begin(tmp_path) / "model.safetensors").write_bytes(b"wei")  # killed here
    found = checkpoints.newest(tmp_path, "CPU")
    assert found == checkpoints.State(first, 5)
    second = saved(tmp_path, 1000000)
    assert [path.name for path in tmp_path.iterdir()] == [second.name]
    assert checkpoints.newest(tmp_path, "CPU") == checkpoints.State(second, 1000000)


def test_states_that_were_cut_and_foreign_entries_are_passed_over(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none", "CPU") is None
    whole = saved(tmp_path, 5)
    kept = [path.read_bytes() for path in sorted(whole.iterdir())]
    cut = tmp_path / "state-000000009"
    cut.mkdir()
    for name, content in zip(
        ("model.safetensors", "optimizer.bin", "position.json"), kept, strict=True
    ):
        (cut / name).write_bytes(content)
    (cut / "position.json").write_text('{"step": 9, "bytes": 14, "by": "CPU"}')
    assert checkpoints.newest(tmp_path, "CPU") == checkpoints.State(cut, 9)
    (cut / "optimizer.bin").write_bytes(b"mom")
    for name in ("lost+found", ".snapshot", "state-000000010", "state-foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "state-000000011").write_text("a file")
    assert checkpoints.newest(tmp_path, "CPU") == checkpoints.State(whole, 5)


def test_a_state_of_other_hardware_is_passed_over_and_removed_by_the_next(tmp_path: Path) -> None:
    ahead = saved(tmp_path, 9)
    assert checkpoints.newest(tmp_path, "GPU") is None
    checkpoints.begin(tmp_path)
    checkpoints.keep(tmp_path, 2, "GPU")
    assert not ahead.exists()
    assert checkpoints.newest(tmp_path, "GPU") == checkpoints.State(tmp_path / "state-000000002", 2)


def job(**params: Any) -> Job:
    """Five steps an epoch, the last of 8 rows: 40 rows by 8, twice."""
    values = {"train_batch": 8, "epochs": 2, **params}
    path = Path("unused")
    return Job(TrainParams(**values), path, path, 40, path, path)


@pytest.mark.parametrize(
    ("params", "step", "minutes", "expected"),
    [
        ({}, 3, 59, Due(False, ())),
        ({}, 3, 60, Due(True, ())),
        ({"checkpoint_minutes": 5}, 3, 5, Due(True, ())),
        ({"checkpoint_minutes": 0}, 3, 900, Due(False, ())),
        ({}, 5, 0, Due(True, ("epoch-1",))),
        ({"save_epoch": False}, 5, 0, Due(True, ())),
        ({}, 10, 0, Due(True, ())),
        ({"save_samples": 20}, 3, 0, Due(True, ("samples-24",))),
        ({"save_samples": 20}, 4, 0, Due(False, ())),
        ({"save_samples": 20}, 5, 0, Due(True, ("epoch-1", "samples-40"))),
    ],
)
def test_states_and_models_are_due_by_epoch_samples_and_time(
    params: dict[str, Any], step: int, minutes: float, expected: Due
) -> None:
    assert checkpoints.due(job(**params), step, seconds=60 * minutes) == expected
