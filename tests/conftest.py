"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A shell starts background jobs with SIGINT ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps run as processes that find the tests' own steps, and none of the user's credentials."""
    for name in list(os.environ):
        if name.startswith(
            ("AWS_", "HF_", "KUBERNETES_", "MODEL_REGISTRY_", "SFT_", "HTTP_BEARER")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
