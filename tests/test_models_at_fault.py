"""Base models at fault: each is told before training, as an error of the data and not as a bug."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps import weights
from steps.entrypoint import Run
from steps.errors import DataError
from steps.params import Bound
from steps.train.__main__ import check
from steps.train.params import TrainParams
from steps.train.publish import publish
from tests.test_train import train, workspace_in
from tests.tiny import CHATML, make_model, make_tokenizer

Change = Callable[[Path], None]


def configured(**changes: Any) -> Change:
    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))

    return change


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def spoil(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"no weights at all")


def lose_a_weight(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def add_word(word: str) -> Change:
    def change(model: Path) -> None:
        tokenizer = make_tokenizer()
        tokenizer.add_tokens([word])
        tokenizer.save_pretrained(model)

    return change


def write(name: str, content: str) -> Change:
    def change(model: Path) -> None:
        (model / name).write_text(content)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (truncate, "the model cannot be loaded: SafetensorError"),
        (spoil, "the model cannot be loaded: SafetensorError"),
        (lose_a_weight, r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (configured(vocab_size=500), r"embed_tokens\.weight has the shape 400x32 instead of 500"),
        (configured(model_type="nonesuch"), "model type `nonesuch`"),
        (configured(hidden_act="nonesuch"), "the model cannot be loaded: KeyError: 'nonesuch'"),
        (write("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
        (write("chat_template.jinja", "{{ 1 / 0 }}"), "the chat template fails: ZeroDivisionError"),
        (write("chat_template.jinja", "{% for %}"), "the chat template: line 1"),
        (write("chat_template.jinja", "{{ messages[0].content }}"), "renders no assistant turn"),
        (
            write(
                "chat_template.jinja", "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
            ),
            "never learn to stop",
        ),
        (add_word("Paris"), "gives the token 400, but its embedding has 400 tokens"),
    ],
)
def test_the_check_names_the_fault(tmp_path: Path, change: Change, told: str) -> None:
    base = make_model(tmp_path / "base")
    params = TrainParams(model=str(base))
    run = Run(Bound(workspace=tmp_path / "run"))
    check(params, run)
    change(base)
    with pytest.raises(DataError, match=told) as refused:
        check(params, run)
    assert str(refused.value).startswith((str(base), "the chat template"))


def test_a_model_whose_weights_are_not_fetched_yet_is_known_by_its_config(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    (base / "model.safetensors").unlink()
    assert weights.outline(base).num_parameters() > 10_000
    configured(model_type="nonesuch")(base)
    with pytest.raises(DataError, match="nonesuch"):
        weights.outline(base)


def test_weights_without_a_place_in_the_model_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_model(tmp_path / "base")
    configured(model_type="llama", architectures=["LlamaForCausalLM"])(base)
    weights.outline(base)
    assert "model.layers.0.self_attn.k_proj.bias" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (truncate, "the model cannot be loaded"),
        (add_word("seven"), "gives the token 400"),
        (write("chat_template.jinja", CHATML + "{{ 1 / 0 }}"), "ZeroDivisionError"),
    ],
)
def test_training_on_a_model_at_fault_is_one_message_of_exit_code_65(
    tmp_path: Path, change: Change, told: str
) -> None:
    base = make_model(tmp_path / "base")
    change(base)
    failed = train(workspace_in(tmp_path), base)
    assert failed.returncode == 65, failed.stderr
    assert told in failed.stderr
    assert "Traceback" not in failed.stderr


def test_rows_beyond_the_models_positions_are_refused_until_they_are_left_out(
    tmp_path: Path,
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {"n_positions": 60, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model: Any = GPT2LMHeadModel(
        GPT2Config(**shape, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    )
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    workspace = workspace_in(tmp_path)
    refused = train(workspace, base)
    assert refused.returncode == 65, refused.stderr
    assert "reads 60 at most; leave longer rows out by --max-seq-len 60" in refused.stderr
    done = train(workspace, base, "--max-seq-len=60")
    assert done.returncode == 0, done.stderr
    assert "longer than 60 tokens (--max-seq-len)" in done.stderr


def test_a_model_with_a_weight_that_is_no_number_is_not_published(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base")
    trained, model = make_model(tmp_path / "trained"), tmp_path / "model"
    state = load_file(trained / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, trained / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DataError, match=r"training diverged: model\.norm\.weight in .*learning-rate"
    ):
        publish(trained, model, base=base, chat_template=CHATML, stop_ids=(2,), card="# Model")
    assert not model.exists()
