"""Several addresses in one parameter, and what is shown of them."""

import pytest

from steps import addresses, logs


@pytest.mark.parametrize(
    "uri",
    [
        "hf://org/name:config@refs/pr/1#train",
        "org/name",
        "hf://datasets/org/name@main/data/part 1*.jsonl",
        "s3://bucket/teams/a/chats #1?.jsonl",
        "s3://bucket/2*/part 2*.jsonl",
        "s3://bucket/a 0.5*.jsonl",
        "https://user:word@host/chats.jsonl?signature=a*b",
        "pvc://claim/my chats/*.jsonl",
        "/data/my chats (2).jsonl",
        "/data/**/1*x.jsonl",
    ],
)
def test_a_single_address_stays_what_it_is(uri: str) -> None:
    assert addresses.split(f" {uri}\n") == [(uri, "")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("s3://b/my key.jsonl /a b.jsonl", [("s3://b/my key.jsonl", ""), ("/a b.jsonl", "")]),
        ("  org/a\n org/b \n\n/c\n", [("org/a", ""), ("org/b", ""), ("/c", "")]),
        ("0.7*hf://a/b 0.3*s3://c/d.jsonl", [("hf://a/b", "0.7"), ("s3://c/d.jsonl", "0.3")]),
        ("2*org/a 1.*/b c/*.jsonl\t.5*pvc://c/d",
         [("org/a", "2"), ("/b c/*.jsonl", "1."), ("pvc://c/d", ".5")]),
        ("hf://a/b 2*hf://c/d", [("hf://a/b", ""), ("hf://c/d", "2")]),
    ],
)  # fmt: skip
def test_several_addresses_may_have_weights(text: str, found: list[tuple[str, str]]) -> None:
    assert addresses.split(text) == found


def test_no_secret_of_any_address_is_shown() -> None:
    text = "1*https://u:word1@h/a?sig=word2\n2*s3://b/my key 3*http://u:word3@h/b?sig=word4"
    assert logs.public_uri(text) == (
        "1*https://h/a?**********\n2*s3://b/my key 3*http://h/b?**********"
    )
