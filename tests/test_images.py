"""What the images are built from; building them takes a container engine and is not done here."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workflows.pipeline import SFT, Step

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

every_step = pytest.mark.parametrize("step", SFT.steps, ids=lambda step: step.name)


def containerfile(step: Step) -> Path:
    """The Containerfile that `make images` builds the step's image from."""
    commands = subprocess.run(
        ["make", "--dry-run", "images", "REGISTRY=registry.example.com/ml", "TAG=1.2.3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tag = re.escape(f"registry.example.com/ml/{step.image}:1.2.3")
    found: list[str] = re.findall(rf"--file (\S+) --tag {tag} ", commands)
    assert len(found) == 1, f"{step.image} is not built exactly once:\n{commands}"
    return ROOT / found[0]


def last(instruction: str, path: Path) -> str:
    """The arguments of the last such instruction, which is the one that counts."""
    found: list[str] = re.findall(rf"^{instruction} (.*)", path.read_text(), re.MULTILINE)
    return found[-1]


@every_step
def test_image_of_a_step_runs_the_step_without_a_shell(step: Step) -> None:
    assert json.loads(last("ENTRYPOINT", containerfile(step))) == ["python", "-m", step.module]


@every_step
def test_image_of_a_step_holds_the_libraries_of_its_extra(step: Step) -> None:
    assert f"\nARG STEP={step.name}\n" in containerfile(step).read_text()
    assert step.name in EXTRAS


@every_step
def test_image_runs_as_a_number_that_is_not_root_in_group_0(step: Step) -> None:
    user, group = last("USER", containerfile(step)).split(":")
    assert int(user) > 0  # Kubernetes' runAsNonRoot refuses a name
    assert int(group) == 0  # as OpenShift's users are


def test_images_are_built_alike_but_for_their_step() -> None:
    """One way of building, written once a step; train has skopeo beside it."""
    texts = set()
    for step in SFT.steps:
        text = containerfile(step).read_text().partition("\n")[2]
        text = re.sub(r"^# skopeo .*?(?=^COPY)", "", text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r'image\.description=".*"', "", text)
        texts.add(re.sub(rf"\b{step.name}\b", "STEP", text))
    assert len(texts) == 1, "\n".join(texts)
