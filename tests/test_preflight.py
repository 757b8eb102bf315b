"""What is told and refused before a training begins."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps import weights
from steps.errors import ConfigError, VolumeError
from steps.tokens import ChatTokenizer
from steps.train import estimate, preflight
from steps.train.backend import Job, Place
from steps.train.estimate import Shape
from steps.train.params import TrainParams
from steps.train.tokenize import Limits, count_tokens
from steps.train.trainjob import plan
from steps.workspace import Workspace
from tests.test_train import train, workspace_in
from tests.test_trainjob_object import job_of, run_in
from tests.tiny import make_model

NODES = Place(
    pods=2, processes=4, has_gpus=True, gpu_memory=80 * 10**9, memory=64 << 30, shm=8 << 30
)
QWEN_7B = Shape(
    parameters=7_600_000_000,
    weights=15_200_000_000,
    blocks=28,
    block=233_000_000,
    outside=1_090_000_000,
    hidden=3584,
    intermediate=18944,
    vocabulary=152_064,
)
# Each turn of the assistant but the last ends with plain text.
LAST_ENDS = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }}"
    "{{ '<|im_end|>' if loop.last else '\n' }}{% endif %}{% endfor %}"
)
QUESTION = {"role": "user", "content": "What is the weather in Oslo, and in Paris as well, please?"}
ANSWER = {"role": "assistant", "content": "It is cold in Oslo, and warmer in Paris."}
CALL = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"c": "Oslo"}}}
    ],
}


def written(path: Path, *rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def replaced(workspace: Path, *rows: list[dict[str, Any]]) -> Path:
    """The rows of a run whose dataset step is done, replaced."""
    return written(workspace / "dataset" / "train.jsonl", *rows)


def everything_in(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def params(**changed: Any) -> TrainParams:
    return TrainParams(model="acme/tiny", **changed)


def test_a_dry_run_tells_what_will_be_and_leaves_nothing(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path, rows=50), make_model(tmp_path / "base")
    before = everything_in(tmp_path)
    told = train(workspace, base, "--dry-run", "--epochs=2", "--train-batch=9")
    assert told.returncode == 0, told.stderr
    assert everything_in(tmp_path) == before
    assert "training on 40 of 40 rows" in told.stderr
    assert "10 optimizer steps: 2 epoch(s) of 5, 9 rows each, the last of an epoch 4" in told.stderr
    assert "for full states" in told.stderr
    assert told.stdout.startswith("# no GPU")
    first = json.loads((workspace / "dataset" / "train.jsonl").read_text().splitlines()[0])
    answer = first["messages"][-1]["content"]
    assert f"train.jsonl:1: <|im_start|>user\\n{first['messages'][0]['content']}" in told.stderr
    assert f"<|im_start|>assistant\\n⟦{answer}<|im_end|>⟧" in told.stderr
    assert told.stderr.count("⟦") == 3


@pytest.mark.parametrize(("verbosity", "shown"), [("INFO", 0), ("DEBUG", 3)])
def test_a_training_shows_rows_only_where_it_is_asked_to(
    tmp_path: Path, verbosity: str, shown: int
) -> None:
    done = train(workspace_in(tmp_path), make_model(tmp_path / "base"), f"--verbosity={verbosity}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("⟦") == shown


def test_a_dry_run_refuses_what_a_training_refuses(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    none_left = train(workspace, base, "--dry-run", "--max-seq-len=22")
    assert none_left.returncode == 65
    assert "nothing is left to train on" in none_left.stderr
    no_data = train(tmp_path / "other", base, "--dry-run")
    assert no_data.returncode == 65
    assert "run the dataset step first" in no_data.stderr
    both = train(workspace, base, "--dry-run", "--check")
    assert both.returncode == 64


def test_what_a_row_holds_does_not_reach_the_terminal_as_a_command(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(make_model(tmp_path / "base"))
    words = {"role": "user", "content": "red \x1b[31m " + "long " * 200}
    shown = preflight._marked(
        tokenizer.encode([{"messages": [words, ANSWER]}])[0], tokenizer, bold=False
    )
    assert "\x1b" not in shown
    assert r"\x1b[31m" in shown
    assert "…" in shown
    assert len(shown) < 400


def test_some_turns_without_an_end_are_told_with_the_first_row(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    replaced(workspace, [QUESTION, ANSWER], [QUESTION, ANSWER] * 3, [QUESTION, ANSWER] * 2)
    template = tmp_path / "last.jinja"
    template.write_text(LAST_ENDS)
    told = train(workspace, base, "--dry-run", f"--chat-template={template}")
    assert told.returncode == 0, told.stderr
    assert "train.jsonl:2: an assistant turn has no end-of-turn token" in told.stderr
    assert "3 of 6 turns have none" in told.stderr


def test_tool_calls_that_the_template_leaves_out_are_told_and_refused_where_all_are(
    tmp_path: Path,
) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    again = {"role": "assistant", "content": "I call weather."}  # in words alone
    replaced(workspace, [QUESTION, ANSWER], [QUESTION, CALL], [QUESTION, again | CALL])
    refused = train(workspace, base, "--dry-run")
    assert refused.returncode == 65
    assert "train.jsonl:2: none of the 2 tool calls is in what is learnt" in refused.stderr
    assert "--chat-template" in refused.stderr
    # One that renders the first call of a turn alone.
    template = tmp_path / "first.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
        "<|im_end|>{% endfor %}"
    )
    twice = CALL | {"tool_calls": CALL["tool_calls"] * 2}  # type: ignore[operator]
    replaced(workspace, [QUESTION, CALL], [QUESTION, twice])
    told = train(workspace, base, "--dry-run", f"--chat-template={template}")
    assert told.returncode == 0, told.stderr
    assert "train.jsonl:2: a tool call is not in what is learnt" in told.stderr
    assert "leaves out 1 of 3" in told.stderr


def test_states_are_sharded_as_asked() -> None:
    def states(sharding: str, place: Place = NODES) -> int:
        return estimate.gpu(QWEN_7B, params(fsdp_sharding=sharding), place, 10_000).states

    whole = 16 * QWEN_7B.parameters
    assert states("FULL_SHARD") == states("SHARD_GRAD_OP") == whole // 8
    assert states("HYBRID_SHARD") == whole // 4
    assert states("NO_SHARD") == states("FULL_SHARD", replace(NODES, pods=1, processes=1)) == whole


def test_a_gpus_estimate_grows_with_its_tokens_and_says_what_it_fits() -> None:
    short, long = (estimate.gpu(QWEN_7B, params(), NODES, n) for n in (2_000, 20_000))
    assert short.fits() == [40, 48, 80, 141]
    assert long.fits() == [141]
    assert long.logits == 10 * short.logits


def test_a_model_is_measured_by_its_outline(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    shape = Shape.of(weights.outline(base))
    assert shape.parameters * 4 == shape.weights
    assert shape.weights <= (base / "model.safetensors").stat().st_size < shape.weights + 10_000
    assert shape.blocks == 2
    assert shape.parameters == 2 * shape.block + shape.outside


def test_the_estimate_of_the_disk_is_what_a_training_writes(tmp_path: Path) -> None:
    workspace, base = workspace_in(tmp_path), make_model(tmp_path / "base")
    asked = {"epochs": 3, "train_batch": 8, "save_samples": 32, "save_full_state": True}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    done = train(workspace, base, *flags)
    assert done.returncode == 0, done.stderr
    disk = estimate.disk(Shape.of(weights.outline(base)), params(**asked), rows=48)
    checkpoints = workspace / "checkpoints"
    kept = [*checkpoints.glob("epoch-*"), *checkpoints.glob("samples-*")]
    assert disk.models == len(kept) + 1
    (state,) = checkpoints.glob("state-*")
    found = sum(file.stat().st_size for file in state.iterdir())
    assert disk.state <= found < 1.2 * disk.state
    assert disk.states == 2


def test_a_volume_that_is_too_small_is_told_before_the_training(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    refused = train(tmp_path / "run", base, "--check", "--epochs=100000000")
    assert refused.returncode == 74
    assert f"{tmp_path / 'run' / 'checkpoints'}: the training will write" in refused.stderr
    assert "--save-epoch False" in refused.stderr
    assert train(tmp_path / "run", base, "--check", "--epochs=9", "--save-epoch=no").returncode == 0


def test_what_an_earlier_attempt_wrote_is_room_for_the_next(
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path)
    (workspace.checkpoints / "state-1").mkdir(parents=True)
    disk = preflight._free(workspace.checkpoints)
    assert disk is not None
    # Sparse: it takes no room, but counts as what it would be.
    with (workspace.checkpoints / "state-1" / "optimizer.bin").open("wb") as file:
        file.truncate(1 << 40)
    again = preflight._free(workspace.checkpoints)
    assert again is not None
    assert again - disk > 0.9 * (1 << 40)
    huge = replace(QWEN_7B, parameters=disk // 12)
    preflight.refuse_want_of_room(huge, params(), workspace)
    (workspace.checkpoints / "state-1" / "optimizer.bin").unlink()
    with pytest.raises(VolumeError):
        preflight.refuse_want_of_room(huge, params(), workspace)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (replace(NODES, pods=1, processes=1), "--fsdp-sharding FULL_SHARD"),
        (replace(NODES, memory=32 << 30), "raise --memory"),
        (replace(NODES, has_gpus=False, gpu_memory=None), "train on GPUs"),
    ],
)
def test_memory_that_cannot_do_is_refused_with_what_to_change(place: Place, told: str) -> None:
    preflight.refuse_want_of_memory(QWEN_7B, params(), NODES)
    with pytest.raises(ConfigError) as refused:
        preflight.refuse_want_of_memory(QWEN_7B, params(), place)
    assert told in str(refused.value)
    assert "--model" in str(refused.value)


@pytest.mark.parametrize(
    ("place", "asked", "told"),
    [
        (NODES, {"train_batch": 6}, "2 of 8 GPUs are idle in every step, which has 6 rows"),
        (replace(NODES, gpu_memory=33 * 10**9), {}, "lower --tokens (10,000 now)"),
        (replace(NODES, gpu_memory=None), {}, "it fits GPUs of 40 GB or more"),
        (replace(NODES, memory=70 * 10**9), {}, "raise --memory"),
        (replace(NODES, shm=1000), {}, "the shared memory (/dev/shm) has 1 kB"),
    ],
)  # fmt: skip
def test_what_may_not_do_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: Place,
    asked: dict[str, Any],
    told: str,
) -> None:
    rows = written(tmp_path / "rows.jsonl", *[[QUESTION, ANSWER] * 8] * 64)
    counts = count_tokens(rows, ChatTokenizer.load(make_model(tmp_path / "base")), Limits(20, 8192))
    job = Job(params(**asked), tmp_path, rows, counts.kept, tmp_path, tmp_path / "curve.jsonl")
    with caplog.at_level(logging.INFO, "steps.train.preflight"):
        preflight.tell(job, place, QWEN_7B, counts, rows)
    assert told in caplog.text


def test_a_step_without_a_dry_run_has_no_such_flag(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "steps.dataset", f"--workspace={tmp_path}", "--dry-run"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 64
    assert "--dry-run is not a flag" in refused.stderr


@pytest.mark.parametrize(
    ("api", "key"), [("v2.1", "podTemplateOverrides"), ("v2.2", "runtimePatches")]
)
def test_the_trainjob_is_described_without_a_cluster_where_its_shape_is_named(
    tmp_path: Path, api: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path)
    params: dict[str, Any] = {"trainer_api": api, "workers": 3, "fsdp_sharding": "HYBRID_SHARD"}
    told = plan.describe(job_of(run, **params), run)
    assert "HYBRID_SHARD shards within a worker" in caplog.text  # before anything is sent
    object_ = yaml.safe_load(told)
    assert object_["kind"] == "TrainJob"
    assert object_["spec"]["trainer"]["numNodes"] == 3
    assert key in object_["spec"]


def test_a_trainjobs_place_is_what_its_pods_ask_for() -> None:
    place = plan.place(params(workers=3, gpu=8, num_procs="4", memory="1.5Gi", shm_size="512Mi"))
    assert (place.pods, place.processes, place.world) == (3, 4, 12)
    assert (place.memory, place.shm) == (3 << 29, 1 << 29)
