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


@pytest.mark.parametrize(
    "uri",
    [
        "hf://name@main",
        "hf://name@v1?",
        "oci://image@sha256:00",
        "s3://b/part-?.jsonl",
        "pvc://c/?",
    ],
)
def test_a_revision_or_a_wildcard_is_no_secret(uri: str) -> None:
    assert logs.public_uri(uri) == uri
    assert logs.uri_secrets(uri) == []


def test_what_is_not_shown_of_an_address_is_what_is_hidden_elsewhere() -> None:
    assert logs.uri_secrets("https://u:word@h/a@b?sig=x") == ["u:word", "word", "sig=x"]


def test_no_secret_of_any_address_is_shown() -> None:
    text = "1*https://u:word1@h/a?sig=word2\n2*s3://b/my key 3*http://u:word3@h/b?sig=word4"
    assert logs.public_uri(text) == (
        "1*https://h/a?**********\n2*s3://b/my key 3*http://h/b?**********"
    )
