"""What `make gpu-check` can show without a GPU."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import difference
from tests.conftest import ROOT


def test_without_a_gpu_the_check_says_so_and_fails() -> None:
    done = subprocess.run(
        ["make", "gpu-check", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "torch sees no CUDA GPU here, so nothing was checked" in done.stderr


def test_loss_curves_are_compared_by_their_means_over_some_steps() -> None:
    assert difference([3.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 2.0], window=2) == 0
    assert difference([3.0, 1.0, 2.0, 2.0], [3.0, 1.0, 2.0, 1.0], window=2) == 0.5
    with pytest.raises(ValueError, match="4 steps against 3"):
        difference([1.0] * 4, [1.0] * 3)
