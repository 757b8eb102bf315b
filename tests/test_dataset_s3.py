"""s3:// against a server that checks signatures, and against ones that fail."""

import base64
import hashlib
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from awscrt import checksums

from steps.errors import ConfigError, CredentialsError, DataError, StepError, TransientError
from tests.dataset_runs import chat, check, command, jsonl, prepare, rows
from tests.servers.s3 import BUCKET, S3

ROWS = [chat(number) for number in range(20)]
KEY = "teams/a/chats #1?.jsonl"
URI = f"s3://{BUCKET}/{KEY}"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with S3() as server:
        server.put(KEY, jsonl(ROWS), ChecksumAlgorithm="SHA256")
        server.put("many/b.jsonl", jsonl(ROWS[10:]))
        server.put("many/a/c.jsonl", jsonl(ROWS[:10]))
        server.put("many/readme.md", b"about it")
        server.put("splits/train.jsonl", jsonl(ROWS[:3]))
        server.put("splits/test.jsonl", jsonl(ROWS[3:]))
        server.put("public/chats.jsonl", jsonl(ROWS[:4]))
        yield server


@pytest.fixture(autouse=True)
def credentials(server: S3, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def refusal(tmp_path: Path, uri: str, error: type[StepError], **params: Any) -> str:
    """What is said of it, by the check and by the run."""
    told = []
    for run in (check, prepare):
        with pytest.raises(error) as refused:
            run(tmp_path / "run", uri, **params)
        assert type(refused.value).exit_code == error.exit_code
        told.append(str(refused.value))
    assert told[0] == told[1]
    return told[0]


def test_an_object_is_read_whatever_characters_its_key_has(tmp_path: Path) -> None:
    check(tmp_path, URI)
    result = prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS
    [file] = result.details["source"]["files"]
    assert file["name"] == URI
    assert file["sha256"] == hashlib.sha256(jsonl(ROWS)).hexdigest()
    assert file["etag"] == f'"{hashlib.md5(jsonl(ROWS)).hexdigest()}"'


@pytest.mark.parametrize("key", ["many", "many/", "many/**/*.jsonl"])
def test_a_prefix_and_a_pattern_name_all_objects_below_in_order(tmp_path: Path, key: str) -> None:
    prepare(tmp_path, f"s3://{BUCKET}/{key}", data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_a_pattern_stays_in_its_folder(tmp_path: Path) -> None:
    prepare(tmp_path, f"s3://{BUCKET}/many/*.jsonl", data_split=1.0)
    assert rows(tmp_path) == ROWS[10:]


def test_objects_named_as_held_out_are_not_trained_on(tmp_path: Path) -> None:
    prepare(tmp_path, f"s3://{BUCKET}/splits/", data_split=1.0)
    assert rows(tmp_path) == ROWS[:3]


def test_openshifts_name_of_the_endpoint_is_read(
    tmp_path: Path, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_S3_ENDPOINT", server.url)
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_session_tokens_are_sent(
    tmp_path: Path, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.session().items():
        monkeypatch.setenv(name, value)
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS
    monkeypatch.setenv("AWS_SESSION_TOKEN", "bogus")
    assert "InvalidToken" in refusal(tmp_path, URI, CredentialsError)


def test_ambient_credentials_are_the_sdks_own(
    tmp_path: Path, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id = {server.key}\naws_secret_access_key = {server.secret}\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert "S3 credentials missing" in refusal(tmp_path, URI, CredentialsError)
    prepare(tmp_path / "run", URI, s3_auth="ambient", data_split=1.0)
    assert rows(tmp_path / "run") == ROWS
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    told = refusal(tmp_path, URI, CredentialsError, s3_auth="ambient")
    assert "finds neither a role nor a web identity nor keys" in told


def test_a_profile_that_does_not_exist_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    told = refusal(tmp_path, URI, ConfigError, s3_auth="ambient")
    assert "(nobodys)" in told and "check AWS_PROFILE" in told


def test_anonymous_access_is_refused_where_a_bucket_is_not_public(tmp_path: Path) -> None:
    told = refusal(tmp_path, URI, CredentialsError, s3_auth="anonymous")
    assert "the bucket is not public" in told


def test_missing_credentials_name_the_secret_and_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", " ")
    told = refusal(tmp_path, URI, CredentialsError)
    assert "S3 credentials missing" in told
    assert "s3-secret (keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)" in told


@pytest.mark.parametrize("unset", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_one_key_of_two_is_misconfigured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: str
) -> None:
    monkeypatch.setenv(unset, "")
    told = refusal(tmp_path, URI, ConfigError)
    assert "S3 credentials misconfigured" in told
    assert unset in told


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
    ],
)
def test_a_wrong_credential_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setenv(name, "wrong-wrong-wrong-wrong")
    told = refusal(tmp_path, URI, CredentialsError)
    assert code in told
    assert "s3-secret" in told


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        (f"s3://{BUCKET}/none.jsonl", f"in the bucket '{BUCKET}' there is no object with the key"),
        (f"s3://{BUCKET}/none/*.jsonl", "no object with the key 'none/*.jsonl'"),
        ("s3://no-such-bucket/x.jsonl", "there is no bucket 'no-such-bucket'"),
    ],
)
def test_what_is_not_there_is_named_by_bucket_and_key(tmp_path: Path, uri: str, told: str) -> None:
    assert told in refusal(tmp_path, uri, DataError)


def test_a_long_name_in_another_script_is_read(tmp_path: Path, server: S3) -> None:
    key = "long/" + "\u4e2d" * 100 + ".jsonl"
    server.put(key, jsonl(ROWS))
    prepare(tmp_path, f"s3://{BUCKET}/{key}", data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
def test_a_credential_that_is_none_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "s3cret\nvalue")
    told = refusal(tmp_path, URI, CredentialsError)
    assert f"the secret s3-secret (key {name})" in told and "s3cret" not in told


def test_an_endpoint_without_tls_is_told_from_one_that_is_not_trusted(
    tmp_path: Path, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_S3_ENDPOINT", server.url.removeprefix("http://"))
    assert "speaks no TLS" in refusal(tmp_path, URI, ConfigError)
    with pytest.raises(ConfigError, match="speaks no TLS"):
        check(tmp_path, f"{server.url.replace('http', 'https')}/x.jsonl")


def test_the_command_shows_no_credential(tmp_path: Path, server: S3) -> None:
    done = command(tmp_path, URI, "--verbosity=DEBUG")
    assert done.returncode == 0, done.stderr
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in [done.stderr, *written] if server.secret in text]


class Failing(BaseHTTPRequestHandler):
    """Answers 503 to all; or serves one object, of which it drops or falsifies what it says."""

    protocol_version = "HTTP/1.1"
    content = jsonl(ROWS)
    plan: list[str]
    asked: list[str]
    checksum = ""
    """Kind of the checksum that is sent; else the ETag is one."""
    parts = False
    """Whether the object was uploaded in parts: its ETag is no digest of the whole."""
    part = 0
    """Bytes of the parts by which it was uploaded, where the server tells: the ETag is of their digests."""
    whole = False
    """Whether the SHA-256 of the whole is sent beside."""
    busy = False
    """Whether it has no time to tell of parts."""
    bare = False
    """Whether neither length nor ETag are sent."""
    ranges = True
    """Whether Range is heeded."""
    rest_alone = False
    """Whether an answer that brings the rest has no checksum of the whole, as on AWS."""
    placed = True
    """Whether a piece says where it lies."""
    keys: Sequence[str] = ()
    """What is listed, a key at a time, as before ListObjectsV2."""
    refusal: tuple[int, str] | None = None
    """Status and code of the answer to all."""

    def refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.refusal:
            self.refuse(*self.refusal)
            return
        query = parse_qs(urlsplit(self.path).query)
        if "prefix" in query:
            after = query.get("marker", [""])[0]
            first, *rest = [key for key in self.keys if key > after]
            listed = f"<Contents><Key>{first}</Key></Contents>"
            cut = f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>"
            page = f"<ListBucketResult>{cut}{listed}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        self.asked.append(self.headers.get("Range", ""))
        act = self.plan.pop(0) if self.plan else "serve"
        if act == "fail":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if act == "renew":
            type(self).content = jsonl(ROWS)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.ranges else 0
        body = self.content[start:]
        self.send_response(206 if start else 200)
        if self.bare:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        if self.part:
            self.send_header("ETag", self.etag_of_parts())
        elif self.parts:
            self.send_header("ETag", '"9bb58f26192e4ba00f01e2e7b136bbd8-2"')
        elif not self.bare:
            self.send_header("ETag", f'"{hashlib.md5(self.content).hexdigest()}"')
        if self.checksum and not (start and self.rest_alone):
            size = 8 if self.checksum == "crc64nvme" else 4
            value = getattr(checksums, self.checksum)(self.content).to_bytes(size, "big")
            sent = base64.b64encode(value).decode()
            self.send_header(f"x-amz-checksum-{self.checksum}", sent)
            self.send_header("x-amz-checksum-type", "FULL_OBJECT")
        if self.whole:
            sent = base64.b64encode(hashlib.sha256(self.content).digest()).decode()
            self.send_header("x-amz-checksum-sha256", sent)
        if start and self.placed:
            total = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if act == "drop":
            body = body[:500]
            self.close_connection = True
        self.wfile.write(body.replace(b"answer", b"ANSWER") if act == "lie" else body)

    def pieces(self) -> list[bytes]:
        return [self.content[i : i + self.part] for i in range(0, len(self.content), self.part)]

    def etag_of_parts(self) -> str:
        digests = [hashlib.md5(piece).digest() for piece in self.pieces()]
        return f'"{hashlib.md5(b"".join(digests)).hexdigest()}-{len(digests)}"'

    def do_HEAD(self) -> None:
        if self.refusal:
            self.refuse(*self.refusal)
            return
        if self.busy or not self.part:
            self.send_error(503 if self.busy else 501)
            return
        pieces = self.pieces()
        number = int(parse_qs(urlsplit(self.path).query)["partNumber"][0])
        self.send_response(206)
        self.send_header("Content-Length", str(len(pieces[number - 1])))
        self.send_header("x-amz-mp-parts-count", str(len(pieces)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Stay silent."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Failing]]:
    handler = type("Handler", (Failing,), {"plan": [], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_fails_for_now_is_asked_again(tmp_path: Path, failing: type[Failing]) -> None:
    failing.plan[:] = ["fail"]
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_a_server_that_fails_for_long_is_transient(tmp_path: Path, failing: type[Failing]) -> None:
    failing.plan[:] = ["fail"] * 50
    with pytest.raises(TransientError, match="503"):
        check(tmp_path, URI)


def test_a_dropped_download_goes_on_where_it_stopped(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.plan[:] = ["serve", "drop"]
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert failing.asked == ["", "", "bytes=500-"]


def test_a_piece_that_does_not_say_where_it_lies_is_not_taken_for_the_object(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.parts, failing.placed = True, False
    failing.plan[:] = ["serve", "drop"]
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert failing.asked == ["", "", "bytes=500-", ""]


def test_a_listing_in_pages_of_the_first_version_is_read_to_its_end(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.keys = ["many/a.jsonl", "many/b.jsonl", "many/c.jsonl"]
    result = prepare(tmp_path, f"s3://{BUCKET}/many/", data_split=1.0)
    names = [file["name"] for file in result.details["source"]["files"]]
    assert names == [f"s3://{BUCKET}/{key}" for key in failing.keys]


def test_a_server_that_heeds_no_range_is_read_from_the_start_again(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.parts, failing.ranges = True, False
    failing.plan[:] = ["serve", "drop"]
    prepare(tmp_path, URI, data_split=1.0, deduplicate="none")
    assert rows(tmp_path) == ROWS
    assert failing.asked == ["", "", "bytes=500-"]


def test_a_server_that_tells_neither_length_nor_etag_is_read(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.bare = True
    result = prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS
    assert result.details["source"]["files"][0]["etag"] is None


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"])
def test_an_endpoint_or_region_that_is_none_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://not a host")
    with pytest.raises(ConfigError, match="check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"):
        check(tmp_path, URI)


@pytest.mark.parametrize(
    ("checksum", "told"),
    [
        ("", "md5"),
        # crc64nvme is what AWS gives an object for which its uploader has chosen none.
        *((kind, kind) for kind in ("crc32", "crc32c", "crc64nvme")),
    ],
)
def test_bytes_that_do_not_fit_their_checksum_are_fetched_again(
    tmp_path: Path, failing: type[Failing], checksum: str, told: str
) -> None:
    failing.checksum, failing.parts = checksum, bool(checksum)
    failing.plan[:] = ["serve", "lie"]
    prepare(tmp_path / "a", URI, data_split=1.0)
    assert rows(tmp_path / "a") == ROWS
    failing.plan[:] = ["serve", "lie", "lie"]
    with pytest.raises(DataError, match=f"corrupt: its {told} is"):
        prepare(tmp_path / "b", URI, data_split=1.0)


@pytest.mark.parametrize("rest_alone", [True, False])
def test_a_checksum_of_the_whole_holds_for_what_came_in_two_pieces(
    tmp_path: Path, failing: type[Failing], rest_alone: bool
) -> None:
    failing.checksum, failing.parts, failing.rest_alone = "crc64nvme", True, rest_alone
    failing.plan[:] = ["serve", "drop"]
    prepare(tmp_path / "a", URI, data_split=1.0)
    assert rows(tmp_path / "a") == ROWS
    assert failing.asked == ["", "", "bytes=500-"]
    failing.plan[:] = ["serve", "drop", "lie"]
    prepare(tmp_path / "b", URI, data_split=1.0)
    assert rows(tmp_path / "b") == ROWS
    assert failing.asked[3:] == ["", "", "bytes=500-", ""]


def test_an_object_that_changed_meanwhile_is_read_from_the_start_by_servers_without_conditions(
    tmp_path: Path, failing: type[Failing]
) -> None:
    old = jsonl(chat(f"o{number}") for number in range(20))
    failing.content, failing.part = old, len(old) // 3
    failing.plan[:] = ["serve", "drop", "renew"]
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_bytes_of_an_object_in_parts_that_do_not_fit_its_etag_are_fetched_again(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.part = len(failing.content) // 3 - 1
    failing.plan[:] = ["serve", "lie", "drop"]
    prepare(tmp_path / "a", URI, data_split=1.0)
    assert rows(tmp_path / "a") == ROWS
    assert failing.asked == ["", "", "", "bytes=500-"]
    failing.plan[:] = ["serve", "lie", "lie"]
    with pytest.raises(DataError, match=r"corrupt: its md5 is [0-9a-f]+-4, the server says"):
        prepare(tmp_path / "b", URI, data_split=1.0)


def test_a_digest_of_the_whole_beside_an_etag_of_parts_is_checked_as_such(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.part, failing.whole = 500, True
    prepare(tmp_path, URI, data_split=1.0)
    assert rows(tmp_path) == ROWS


def test_parts_are_not_left_unchecked_because_the_server_is_busy(
    tmp_path: Path, failing: type[Failing]
) -> None:
    failing.part, failing.busy = len(failing.content) // 3, True
    with pytest.raises(TransientError, match="503"):
        prepare(tmp_path, URI)


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", None])
@pytest.mark.parametrize("sizes", [(5, 5, 5, 1), (5, 11), (6, 5, 5)])
def test_an_object_in_parts_of_whatever_sizes_is_read(
    tmp_path: Path, server: S3, algorithm: str | None, sizes: tuple[int, ...]
) -> None:
    """With the digests that the server itself makes of them."""
    text = {"role": "user", "content": "long " * 1000}
    many = [{"messages": [text, *chat(number)["messages"]]} for number in range(3300)]
    content = jsonl(many)
    ends = [sum(sizes[: i + 1]) << 20 for i in range(len(sizes) - 1)]
    parts = [content[a:b] for a, b in zip([0, *ends], [*ends, len(content)], strict=True)]
    server.put_in_parts("large.jsonl", parts, algorithm)
    prepare(tmp_path, f"s3://{BUCKET}/large.jsonl", data_split=1.0)
    assert rows(tmp_path) == many


def test_a_folder_may_have_the_characters_of_patterns_in_its_name(
    tmp_path: Path, server: S3
) -> None:
    server.put("set[1]/a.jsonl", jsonl(ROWS))
    prepare(tmp_path, f"s3://{BUCKET}/set[1]/", data_split=1.0)
    assert rows(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("status", "code", "error", "told"),
    [
        (301, "", ConfigError, "sends us to another address"),
        (302, "", ConfigError, "sends us to another address"),
        (301, "PermanentRedirect", ConfigError, "sends us to another address"),
        (403, "InvalidObjectState", DataError, "archived .* restore it first"),
        (400, "InvalidIdentityToken", CredentialsError, "refused"),
    ],
)
def test_what_the_server_answers_to_all_says_what_to_do(
    tmp_path: Path,
    failing: type[Failing],
    status: int,
    code: str,
    error: type[StepError],
    told: str,
) -> None:
    failing.refusal = (status, code)
    with pytest.raises(error, match=told):
        check(tmp_path, URI)


def test_a_server_that_is_not_there_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        port = server.server_port
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(TransientError, match="no answer"):
        check(tmp_path, URI)
