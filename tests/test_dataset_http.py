"""http(s):// against a server that fails, drops, redirects and lies."""

import base64
import hashlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.errors import CredentialsError, DataError, TransientError
from tests.dataset_runs import chat, check, command, jsonl, prepare, rows
from tests.servers.files import Answer, Files, Request

ROWS = [chat(number) for number in range(500)]
NOW = {"Retry-After": "0"}
PATH = "/sets/chats.jsonl"


@pytest.fixture
def server() -> Iterator[Files]:
    with Files() as server:
        server.files[PATH] = jsonl(ROWS)
        yield server


def ranges(server: Files) -> list[str]:
    return [request.headers.get("range", "") for request in server.requests]


def test_rows_come_from_a_web_server(tmp_path: Path, server: Files) -> None:
    result = prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS
    [file] = result.details["source"]["files"]
    assert file["name"] == server.url + PATH
    assert file["sha256"] == hashlib.sha256(jsonl(ROWS)).hexdigest()
    assert file["etag"] == f'"{hashlib.md5(jsonl(ROWS)).hexdigest()}"'
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == [
        "eval.jsonl",
        "train.jsonl",
    ]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_fails_for_now_is_asked_again(
    tmp_path: Path, server: Files, status: int
) -> None:
    server.answer(PATH, Answer(status, NOW), Answer(status, NOW))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_a_server_that_fails_for_long_is_exit_code_75(tmp_path: Path, server: Files) -> None:
    server.answer(PATH, *[Answer(503, NOW)] * 20)
    failed = command(tmp_path, server.url + PATH)
    assert failed.returncode == 75
    assert "the server answers 503 Service Unavailable, 6 times in a row" in failed.stderr
    assert not list((tmp_path / "dataset").glob("*.jsonl"))


def test_a_server_that_is_not_there_is_exit_code_75(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Files() as server:
        gone = server.url
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    with pytest.raises(TransientError, match="no answer: Connection refused, 6 times in a row"):
        check(tmp_path, gone + PATH)


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (404, DataError, "404 Not Found: no such file"),
        (410, DataError, "410 Gone"),
        (401, CredentialsError, "the secret http-token"),
        (403, CredentialsError, "the secret http-token"),
        (400, DataError, "answers 400"),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, server: Files, status: int, error: type[Exception], told: str
) -> None:
    for run in (prepare, check):
        server.answer(PATH, Answer(status))
        with pytest.raises(error, match=told):
            run(tmp_path, server.url + PATH)


def test_a_dropped_download_goes_on_where_it_stopped(tmp_path: Path, server: Files) -> None:
    size = len(jsonl(ROWS))
    server.answer(PATH, Answer(cut=1000), Answer(cut=2000))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert ranges(server) == ["", "bytes=1000-", "bytes=3000-"]
    assert size > 3000


def test_a_download_that_changed_meanwhile_starts_again(tmp_path: Path, server: Files) -> None:
    old = jsonl(chat(f"old {number}") for number in range(500))
    server.answer(PATH, Answer(cut=1000, content=old))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_a_server_without_ranges_is_read_from_the_start_again(tmp_path: Path) -> None:
    with Files(ranges=False) as server:
        server.files[PATH] = jsonl(ROWS)
        server.answer(PATH, Answer(cut=1000))
        prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def piece(content: bytes, end: int, size: str) -> Answer:
    """The file from its thousandth byte to `end`, as a part of one of that size."""
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    sent = {"ETag": etag, "Content-Range": f"bytes 1000-{end - 1}/{size}"}
    return Answer(206, sent, content[1000:end])


def test_a_server_that_gives_less_than_the_range_is_asked_for_the_rest(
    tmp_path: Path, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    content = jsonl(ROWS)
    line = content.index(b"\n", 2000) + 1  # the piece ends with a row, so no row shows the loss
    server.answer(PATH, Answer(cut=1000), piece(content, line, str(len(content))))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert ranges(server) == ["", "bytes=1000-", f"bytes={line}-"]


def test_a_piece_that_may_stop_short_of_the_end_is_not_taken_for_the_rest(
    tmp_path: Path, server: Files
) -> None:
    content = jsonl(ROWS)
    line = content.index(b"\n", 2000) + 1  # the piece ends with a row, so no row shows the loss
    server.answer(PATH, Answer(cut=1000), piece(content, line, "*"))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(503, {"Retry-After": "\xb2"})],
        [Answer(503, {"Retry-After": "Fri, 31 Dec 99999999999 23:59:59 GMT"})],
        [Answer(cut=1000), Answer(206, {"Content-Range": f"bytes 1000-2000/{'9' * 5000}"})],
        [Answer(cut=1000), Answer(206, {"Content-Range": f"bytes {'9' * 5000}-2000/3000"})],
    ],
)
def test_numbers_in_headers_that_are_none_are_not_heeded(
    tmp_path: Path, server: Files, monkeypatch: pytest.MonkeyPatch, answers: list[Answer]
) -> None:
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    server.answer(PATH, *answers)
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000])
def test_a_length_that_is_none_is_not_heeded(tmp_path: Path, server: Files, length: str) -> None:
    server.headers |= {"Content-Length": length, "Connection": "close"}
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize("location", ["http://[s1gned/", "file:///etc/passwd", "ftp://host/s1gned"])
def test_a_redirect_to_what_is_no_address_is_a_data_error(
    tmp_path: Path, server: Files, location: str
) -> None:
    server.answer(PATH, Answer(302, {"Location": location}))
    with pytest.raises(DataError, match="it redirects to what is no address"):
        prepare(tmp_path, server.url + PATH)


def test_a_server_that_always_drops_at_the_same_place_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    with Files(ranges=False) as server:
        server.answer(PATH, *[Answer(cut=1000, content=jsonl(ROWS))] * 20)
        with pytest.raises(TransientError, match="the connection broke"):
            prepare(tmp_path, server.url + PATH)


def test_a_killed_download_goes_on_where_it_stopped(tmp_path: Path, server: Files) -> None:
    many = [chat("x" * 10_000 + str(number)) for number in range(400)]
    server.files[PATH] = content = jsonl(many)
    held, killed = threading.Event(), threading.Event()

    def hold_the_second_request(request: Request) -> None:
        if request.headers.get("range"):
            held.set()
            killed.wait(60)

    server.on_request = hold_the_second_request
    server.answer(PATH, Answer(cut=len(content) // 2))
    uri = server.url + PATH
    arguments = [f"--workspace={tmp_path}", f"--data-uri={uri}", "--data-split=1.0"]
    with subprocess.Popen([sys.executable, "-m", "steps.dataset", *arguments]) as step:
        assert held.wait(60)
        step.send_signal(signal.SIGKILL)
    killed.set()
    server.on_request = lambda _request: None
    done = command(tmp_path, uri, "--data-split=1.0")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == many
    assert ranges(server)[-1] == f"bytes={len(content) // 2}-"


def test_bytes_that_do_not_fit_the_servers_digest_are_fetched_again(
    tmp_path: Path, server: Files
) -> None:
    digest = base64.b64encode(hashlib.sha256(jsonl(ROWS)).digest()).decode()
    server.headers["Repr-Digest"] = f"sha-256=:{digest}:"
    wrong = jsonl(ROWS).replace(b"answer 7", b"answer 8")
    server.answer(PATH, Answer(content=wrong))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("header", "value", "told"),
    [
        ("Content-MD5", base64.b64encode(b"x" * 16).decode(), "its md5 is"),
        ("Content-MD5", b"x".hex() * 16, "its md5 is"),
        ("Content-Digest", f"sha-256=:{base64.b64encode(b'x' * 32).decode()}:", "its sha256 is"),
        ("Digest", f"MD5={base64.b64encode(b'x' * 16).decode()}", "its md5 is"),
        ("Digest", f"SHA={base64.b64encode(b'x' * 20).decode()}", "its sha1 is"),
        ("x-amz-checksum-sha256", base64.b64encode(b"x" * 32).decode(), "its sha256 is"),
        ("x-amz-checksum-crc64nvme", base64.b64encode(b"x" * 8).decode(), "its crc64nvme is"),
        ("x-goog-hash", f"crc32c={base64.b64encode(b'x' * 4).decode()},md5=", "its crc32c is"),
    ],
)
def test_bytes_that_stay_wrong_are_refused(
    tmp_path: Path, server: Files, header: str, value: str, told: str
) -> None:
    server.headers[header] = value
    with pytest.raises(DataError, match=f"corrupt: {told}"):
        prepare(tmp_path, server.url + PATH)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-MD5": hashlib.md5(jsonl(ROWS)).hexdigest()},
        {"Digest": f"sha-256={hashlib.sha256(jsonl(ROWS)).hexdigest()}"},
        {"Content-MD5": "none", "Digest": "sha-256=bm9uZQ==", "x-amz-checksum-crc32": "?"},
        {"x-amz-checksum-sha256": f"{base64.b64encode(b'x' * 32).decode()}-2"},
        {
            "x-goog-stored-content-encoding": "gzip",  # the digest is not of what is served
            "x-goog-hash": f"md5={base64.b64encode(b'x' * 16).decode()}",
        },
    ],
)
def test_digests_in_hex_are_understood_and_what_is_no_digest_of_the_bytes_is_not_heeded(
    tmp_path: Path, server: Files, headers: dict[str, str]
) -> None:
    server.headers |= headers
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_a_digest_of_the_whole_holds_for_what_came_in_two_pieces(
    tmp_path: Path, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    content = jsonl(ROWS)
    said = {"Content-MD5": base64.b64encode(hashlib.md5(content).digest()).decode()}
    rest = {
        "ETag": f'"{hashlib.md5(content).hexdigest()}"',
        "Content-Range": f"bytes 1000-{len(content) - 1}/{len(content)}",
    }
    wrong = content[1000:].replace(b"answer", b"ANSWER")
    server.answer(PATH, Answer(cut=1000, headers=said), Answer(206, rest, wrong))
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert ranges(server) == ["", "bytes=1000-", ""]


def test_a_server_that_refuses_the_rest_is_read_from_the_start_again(
    tmp_path: Path, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.retries.FIRST_WAIT", 0.0)
    for status in (412, 416):
        server.answer(PATH, Answer(cut=1000), Answer(status))
        prepare(tmp_path / str(status), server.url + PATH, data_split=1.0)
        assert rows(tmp_path / str(status)) == ROWS


KILLED = """
import os, sys
from pathlib import Path
from tests.dataset_runs import prepare

def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("chats.jsonl.partial"):
        path, mode, _ = arguments
        if mode == "w" and os.path.exists(path):
            os._exit(9)

sys.addaudithook(kill)
prepare(Path(sys.argv[1]), sys.argv[2], data_split=1.0)
"""


def test_pieces_of_two_versions_are_not_put_together_after_a_kill_between_them(
    tmp_path: Path, server: Files
) -> None:
    lines = jsonl(ROWS).splitlines(keepends=True)
    old = b"".join(line.replace(b"question", b"QUESTION") for line in lines)
    server.answer(PATH, Answer(cut=len(b"".join(lines[:9])), content=old))
    arguments = [str(tmp_path), server.url + PATH]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert killed.returncode == 9
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_an_address_that_is_none_is_a_mistake_of_use(tmp_path: Path) -> None:
    told = command(tmp_path, "http://[half/chats.jsonl?signature=hunter2-hunter2")
    assert told.returncode == 64
    assert "not an address" in told.stderr
    assert "hunter2" not in told.stderr


def test_a_web_page_is_no_data(tmp_path: Path, server: Files) -> None:
    server.files[PATH] = b"<!doctype html><title>Sign in</title>"
    for run in (check, prepare):
        with pytest.raises(DataError, match=r"chats\.jsonl: the server answers with a web page"):
            run(tmp_path, server.url + PATH)


def test_better_data_at_the_same_address_is_fetched_after_a_refusal(
    tmp_path: Path, server: Files
) -> None:
    server.files[PATH] = jsonl([{"text": "x"}])
    with pytest.raises(DataError, match="missing 'messages'"):
        prepare(tmp_path, server.url + PATH)
    server.files[PATH] = jsonl(ROWS)
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_packed_rows_are_unpacked_here_whatever_the_server_says_of_them(
    tmp_path: Path, server: Files
) -> None:
    import gzip

    server.files[PATH] = gzip.compress(jsonl(ROWS))
    server.headers["Content-Encoding"] = "gzip"
    prepare(tmp_path, server.url + PATH, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_rows_packed_as_nobody_asked_are_refused_by_the_packing(
    tmp_path: Path, server: Files
) -> None:
    server.answer(PATH, Answer(headers={"Content-Encoding": "br"}, content=b"\x8b\x02"))
    with pytest.raises(DataError, match=r"packs the file by itself \(br\)"):
        prepare(tmp_path, server.url + PATH)


@pytest.mark.parametrize("token", ["t\u20ack", "two\nlines", "Bearer token"])
def test_a_token_that_is_none_is_refused_before_it_is_sent(
    tmp_path: Path, server: Files, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HTTP_BEARER_TOKEN", token)
    for run in (check, prepare):
        with pytest.raises(
            CredentialsError, match=r"http-token \(key HTTP_BEARER_TOKEN\)"
        ) as refused:
            run(tmp_path, server.url + PATH)
        assert token not in str(refused.value)
    assert not server.requests


def test_the_token_is_sent_but_not_to_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_BEARER_TOKEN", "s3cret-token")
    with Files(token="s3cret-token") as home, Files() as other:
        home.files[PATH] = other.files["/elsewhere"] = jsonl(ROWS)
        prepare(tmp_path / "a", home.url + PATH, data_split=1.0)
        assert rows(tmp_path / "a") == ROWS
        home.answer(PATH, Answer(302, {"Location": f"{other.other_host}/elsewhere"}))
        prepare(tmp_path / "b", home.url + PATH, data_split=1.0)
        assert rows(tmp_path / "b") == ROWS
        assert home.requests[-1].headers["authorization"] == "Bearer s3cret-token"
        assert "authorization" not in other.requests[-1].headers


def test_the_token_is_not_sent_over_plain_http_to_a_remote_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Files, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTP_BEARER_TOKEN", "s3cret-token")
    monkeypatch.setenv("http_proxy", server.url)  # the request to the far host comes to us
    server.answer("/x.jsonl", Answer(404))
    with pytest.raises(DataError), caplog.at_level(logging.WARNING):
        check(tmp_path, "http://data.example/x.jsonl")
    assert "not sent over http" in caplog.text
    assert all("authorization" not in request.headers for request in server.requests)


def test_the_signature_of_a_presigned_link_is_shown_nowhere(tmp_path: Path, server: Files) -> None:
    signed = f"{server.url}{PATH}?X-Amz-Signature=0123456789abcdef&X-Amz-Expires=900"
    server.answer(PATH, Answer(503, NOW), Answer(cut=100))
    done = command(tmp_path / "run", signed, "--verbosity=DEBUG")
    assert done.returncode == 0, done.stderr
    server.answer(PATH, *[Answer(403, NOW)] * 5)
    refused = command(tmp_path / "other", signed, "--verbosity=DEBUG")
    assert refused.returncode == 77
    shown = [done.stderr, refused.stderr]
    shown += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if "0123456789abcdef" in text]
    record = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert record["details"]["source"]["files"][0]["name"] == server.url + PATH


def test_headers_that_are_none_do_not_bring_the_signature_to_the_log(
    tmp_path: Path, server: Files
) -> None:
    server.files["/far.jsonl"] = jsonl(ROWS)
    wrong = {"no header": "here\r\n at all"}
    server.answer(PATH, Answer(302, {"Location": "/far.jsonl?signature=f%2far", **wrong}))
    server.answer("/far.jsonl", Answer(content=jsonl(ROWS), headers=wrong))
    done = command(tmp_path, f"{server.url}{PATH}?signature=n%2fear")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) and len(server.requests) == 2
    assert "signature" not in done.stderr


def test_several_links_are_told_apart_by_what_must_not_be_shown(
    tmp_path: Path, server: Files
) -> None:
    host = server.url.removeprefix("http://")
    links = [f"http://user:w0rd-{n}@{host}{PATH}?signature=s1gn-{n}" for n in (1, 2)]
    server.answer(PATH, Answer(content=jsonl([chat(1)])), Answer(content=jsonl([chat(2)])))
    done = command(tmp_path / "run", f"1*{links[0]}\n1*{links[1]}", "--data-split=1.0")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run") == [chat(1), chat(2)]
    shown = [done.stderr, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert not [text for text in shown if "w0rd" in text or "s1gn" in text]


def test_a_done_run_does_not_ask_the_server_again(tmp_path: Path, server: Files) -> None:
    assert command(tmp_path, server.url + PATH).returncode == 0
    before = len(server.requests)
    assert "already done" in command(tmp_path, server.url + PATH).stderr
    assert len(server.requests) == before


def test_check_fetches_no_more_than_a_byte(tmp_path: Path, server: Files) -> None:
    check(tmp_path / "run", server.url + PATH)
    assert ranges(server) == ["bytes=0-0"]
    assert not (tmp_path / "run").exists()
