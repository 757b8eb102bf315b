"""Token ids and labels, held to the training library's own, and to what is right where it fails."""

from pathlib import Path
from typing import Any

import pytest

from steps.chat_template import TemplateError
from steps.errors import DataError
from steps.tokens import MASKED, ChatTokenizer
from tests.tiny import make_model

TEMPLATES = Path(__file__).parent / "templates"

# Each: template, end-of-sequence token, special tokens that the template writes.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml_tools": ("<|im_end|>", ()),
    "llama3": ("<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": ("</s>", ("[INST]", "[/INST]")),
    "gemma": ("<end_of_turn>", ("<start_of_turn>",)),
    "zephyr": ("</s>", ()),
    "thinking": ("<|im_end|>", ("<think>", "</think>")),
}

SHORT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
MANY = [
    *SHORT,
    {"role": "user", "content": "  and of \n\nSpain? "},
    {"role": "assistant", "content": "\n  Madrid,  I think.\n\n"},
    {"role": "user", "content": "Übung 😀 über alles"},
    {"role": "assistant", "content": "naïve 😀\tanswer"},
]
SYSTEM = [{"role": "system", "content": "Answer in one word."}, *MANY]
TOOLS = [
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
            }
        ],
    },
    {"role": "tool", "content": "cold", "name": "weather"},
    {"role": "assistant", "content": "It is cold in Oslo."},
]
REASONED = [
    SHORT[0],
    {"role": "assistant", "content": "Paris.", "reasoning_content": "Everybody knows that."},
]
CHATS = {"short": SHORT, "many": MANY, "system": SYSTEM, "tools": TOOLS}
UNKNOWN = {("mistral", "tools"), ("gemma", "system")}


def model_with(folder: Path, name: str) -> Path:
    eos, special = FORMATS[name]
    template = (TEMPLATES / f"{name}.jinja").read_text()
    return make_model(folder / name, template=template, eos=eos, special=special)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: model_with(folder, name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chat", CHATS)
def test_ids_and_labels_equal_those_of_instructlab(
    models: dict[str, Path], name: str, chat: str
) -> None:
    from instructlab.training.data_process import configure_tokenizer, unmask_sample

    row = {"messages": CHATS[chat]}
    ours = ChatTokenizer.load(models[name])
    if (name, chat) in UNKNOWN:
        with pytest.raises(TemplateError, match=r"(not|are) known here"):
            ours.encode([row])
        return
    theirs = unmask_sample(row, configure_tokenizer(str(models[name])))
    encoded = ours.encode([row])[0]
    assert encoded.ids == theirs["input_ids"]
    assert encoded.labels == theirs["labels"]
    assert encoded.trained > 0


def test_reasoning_and_labels_equal_those_of_instructlab(models: dict[str, Path]) -> None:
    from instructlab.training.data_process import configure_tokenizer, unmask_sample

    row = {"messages": REASONED}
    theirs = unmask_sample(row, configure_tokenizer(str(models["thinking"])))
    encoded = ChatTokenizer.load(models["thinking"]).encode([row])[0]
    assert (encoded.ids, encoded.labels) == (theirs["input_ids"], theirs["labels"])


def test_a_turn_whose_reasoning_the_template_leaves_out_keeps_its_end_of_turn(
    models: dict[str, Path],
) -> None:
    tokenizer = ChatTokenizer.load(models["llama3"])
    assert trained_text(tokenizer, {"messages": REASONED}) == "Paris.<|eot_id|>"


def test_every_role_but_system_is_learnt_where_the_row_says_unmask(
    models: dict[str, Path],
) -> None:
    from instructlab.training.data_process import configure_tokenizer, unmask_sample

    row = {"messages": SYSTEM, "unmask": True}
    theirs = unmask_sample(row, configure_tokenizer(str(models["chatml_tools"])))
    encoded = ChatTokenizer.load(models["chatml_tools"]).encode([row])[0]
    assert (encoded.ids, encoded.labels) == (theirs["input_ids"], theirs["labels"])


@pytest.mark.parametrize("model", ["chatml_tools", "thinking"])
def test_a_turn_without_weight_is_neither_learnt_nor_scored(
    models: dict[str, Path], model: str
) -> None:
    tokenizer = ChatTokenizer.load(models[model])
    weightless = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRome.", "weight": 0}
    row = {"messages": [SHORT[0], weightless, *SHORT]}
    assert trained_text(tokenizer, row).rstrip("\n") == "Paris.<|im_end|>"
    assert [prompt.turn for prompt in tokenizer.prompts(row)] == [3]
    unmasked = trained_text(tokenizer, row | {"unmask": True})
    assert SHORT[0]["content"] in unmasked and "Rome" not in unmasked


def trained_text(tokenizer: ChatTokenizer, row: dict[str, Any]) -> str:
    encoded = tokenizer.encode([row])[0]
    learnt = [token for token in encoded.labels if token != MASKED]
    return tokenizer._plain.decode(learnt, skip_special_tokens=False)


def test_the_templates_own_end_of_turn_is_learnt_where_it_is_not_the_end_of_sequence(
    tmp_path: Path,
) -> None:
    model = make_model(tmp_path, eos="<|endoftext|>")
    tokenizer = ChatTokenizer.load(model)
    assert trained_text(tokenizer, {"messages": SHORT + SHORT}) == "Paris.<|im_end|>" * 2
    assert len(tokenizer.stop_ids) == 2


def test_a_template_that_splits_reasoning_off_the_words_is_learnt_from_the_turns_header_on(
    models: dict[str, Path],
) -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nParis."}
    tokenizer = ChatTokenizer.load(models["thinking"])
    row = {"messages": [SHORT[0], thought, SHORT[0], thought]}
    assert trained_text(tokenizer, row) == (
        "Paris.<|im_end|>" + "<think>\nhm\n</think>\n\nParis.<|im_end|>"
    )


def test_earlier_turns_whose_reasoning_is_dropped_keep_their_end_of_turn(
    models: dict[str, Path],
) -> None:
    tokenizer = ChatTokenizer.load(models["thinking"])
    assert trained_text(tokenizer, {"messages": REASONED + REASONED}) == (
        "Paris.<|im_end|>" + "Everybody knows that.\n</think>\n\nParis.<|im_end|>"
    )


def test_tools_are_rendered(models: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer.load(models["chatml_tools"])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    ids = tokenizer.encode([{"messages": TOOLS, "tools": tools}])[0].ids
    assert '"name": "weather", "parameters": {}' in tokenizer.decode(ids)


def test_every_assistant_turn_is_a_prompt_with_the_true_history(models: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer.load(models["chatml_tools"])
    prompts = tokenizer.prompts({"messages": TOOLS})
    assert [prompt.turn for prompt in prompts] == [1, 3]
    assert prompts[0].expected.strip().startswith('<tool_call>\n{"name": "weather"')
    assert prompts[1].expected == "It is cold in Oslo."
    assert "cold" in tokenizer.decode(prompts[1].ids)


def test_a_tokenizer_without_a_chat_template_is_refused_unless_one_is_given(
    tmp_path: Path,
) -> None:
    model = make_model(tmp_path, template=None)
    with pytest.raises(DataError, match=r"no chat template.*--chat-template"):
        ChatTokenizer.load(model)
    given = ChatTokenizer.load(model, TEMPLATES / "chatml_tools.jinja")
    assert trained_text(given, {"messages": SHORT}) == "Paris.<|im_end|>"


def test_a_template_with_a_fault_names_its_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(DataError, match="line 2"):
        ChatTokenizer.load(make_model(tmp_path / "model"), broken)


def test_a_template_cannot_leave_the_sandbox(tmp_path: Path) -> None:
    model = make_model(tmp_path, template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TemplateError, match="unsafe"):
        ChatTokenizer.load(model).encode([{"messages": SHORT}])
