"""The model card: valid front matter, and the facts a reader of the model needs."""

from typing import Any

import pytest
import yaml

from steps.train.card import model_card


def make_card(**facts: Any) -> str:
    values: dict[str, Any] = {
        "name": "demo",
        "base_model": "Qwen/Qwen2.5-1.5B-Instruct",
        "base_revision": "989aa798",
        "data_uri": "hf://acme/dictionary",
        "data_sha256": "9f2c4e",
        "rows": 11_051,
        "parameters": {"epochs": 3, "learning_rate": 5e-06, "labels": "", "save_epoch": True},
        "metrics": {"loss_last": 0.412341234},
        "versions": {"torch": "2.13.0"},
    }
    return model_card(**values | facts)


def front_matter(card: str) -> dict[str, Any]:
    before, front, _ = card.split("---\n", 2)
    assert before == ""
    loaded: dict[str, Any] = yaml.safe_load(front)
    return loaded


def test_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(make_card()) == {
        "base_model": "Qwen/Qwen2.5-1.5B-Instruct",
        "datasets": ["acme/dictionary"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft"],
    }


def test_card_tells_what_the_model_was_made_from() -> None:
    card = make_card()
    for line in (
        "# demo",
        "| Base model | Qwen/Qwen2.5-1.5B-Instruct |",
        "| Base model revision | 989aa798 |",
        "| SHA-256 of the training rows | 9f2c4e |",
        "| Rows trained on | 11051 |",
        "| learning_rate | 5e-06 |",
        "| save_epoch | true |",
        "| loss_last | 0.412341 |",
        "| torch | 2.13.0 |",
    ):
        assert line in card.splitlines()
    assert "labels" not in card


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("acme/dictionary", "acme/dictionary"),
        ("hf://acme/dictionary:de@refs/pr/1", "acme/dictionary"),
        ("hf://datasets/acme/dictionary@v1#train", "acme/dictionary"),
        ("squad", "squad"),
        ("s3://bucket/key", None),
        ("https://example.org/rows.jsonl", None),
        ("pvc://claim/rows.jsonl", None),
        ("/data/rows.jsonl", None),
    ],
)
def test_only_the_hubs_data_sets_are_named_as_such(uri: str, expected: str | None) -> None:
    card = make_card(data_uri=uri)
    assert front_matter(card).get("datasets") == ([expected] if expected else None)
    assert f"| Data set | {uri} |".replace("#", "\\#") in card


def test_of_a_mix_all_data_sets_of_the_hub_are_named() -> None:
    card = make_card(data_uri="0.5*hf://acme/a@v1 0.3*/data/my chats.jsonl\n0.2*acme/b")
    assert front_matter(card)["datasets"] == ["acme/a", "acme/b"]


@pytest.mark.parametrize(
    "uri", ["/models/tiny", "oci://registry.example/models/tiny:1", "pvc://c/m"]
)
def test_base_model_from_elsewhere_is_told_in_the_text_alone(uri: str) -> None:
    card = make_card(base_model=uri, base_revision=None)
    assert "base_model" not in front_matter(card)
    assert f"| Base model | {uri} |" in card
    assert "revision" not in card


def test_values_do_not_break_out_of_their_cell() -> None:
    card = make_card(name="a\n---\nb", parameters={"x": "1 | 2\n<img src=x> _y_ a_b"})
    assert "# a --- b" in card.splitlines()
    assert r"| x | 1 \| 2 \<img src=x\> \_y\_ a_b |" in card.splitlines()
