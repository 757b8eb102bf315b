"""http:// and https:// addresses, with a bearer token where one is set."""

import contextlib
import ipaddress
import logging
import ssl
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

from steps import logs
from steps.dataset.params import HTTP_TOKEN
from steps.dataset.sources import DataFile, Fetched
from steps.dataset.sources.download import (
    DIGESTS,
    Body,
    Download,
    in_hex,
    number,
    position,
)
from steps.errors import ConfigError, CredentialsError, DataError, StepError, UsageError
from steps.record import Asset
from steps.retries import TryAgain, persist, retry_after
from steps.secrets import environment, in_header

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

_TIMEOUT = (10, 60)
"""Seconds to connect, and without a byte."""
_CHUNK = 1 << 20
_UNREADABLE = ("br", "compress", "deflate", "x-compress")
"""Values of Content-Encoding: the reader tells gzip and zstd by the bytes, and some servers say anything."""
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524)


def parse(uri: str) -> tuple[SplitResult, str]:
    """The parts of the address, and its host; UsageError where it is none."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"{logs.public_uri(uri)}: not an address: {error}") from error
    if not parts.hostname:
        raise UsageError(f"{logs.public_uri(uri)}: there is no host in it")
    return parts, parts.hostname


class Http:
    """One file of a web server."""

    def __init__(self, uri: str) -> None:
        parts, host = parse(uri)
        self.uri, self.public = uri, logs.public_uri(uri)
        for _, value in parse_qsl(parts.query):
            logs.hide(value)  # a signature; libraries quote it in their messages
        self.name = self.public.partition("?")[0]
        (key,) = HTTP_TOKEN.keys
        self.token = in_header(environment(key), HTTP_TOKEN, key)
        if self.token and parts.scheme == "http" and not _is_loopback(host):
            log.warning("%s: the token of secret http-token is not sent over http", self.public)
            self.token = ""

    def asset(self) -> Asset:
        """The address without its query, which may be a signature."""
        return Asset(uri=self.public)

    def check(self) -> list[DataFile]:
        """The first byte can be had."""
        persist(self._begin, self.name)
        return []

    def _begin(self) -> None:
        answer = self._answer({"Range": "bytes=0-0"})
        if answer.status_code == 416:  # its body is not the file's: that is empty
            answer.close()
            return
        with contextlib.closing(self._chunks(answer, first=True)) as chunks:
            next(chunks, None)

    def fetch(self, into: Path) -> Fetched:
        """The file, downloaded."""
        return Fetched((Download(self.name, self._open, into).finish(),))

    def _open(self, offset: int, etag: str) -> Body:
        resume = {"Range": f"bytes={offset}-", "If-Range": etag} if offset else {}
        answer = self._answer(resume)
        # The size by Content-Range: a server may give less at a time than was asked for.
        begins, total = position(answer.headers.get("Content-Range", ""))
        # One that does not say the size may stop short of the end unnoticed.
        resumed = (
            answer.status_code == 206
            and begins == offset
            and total is not None
            and _etag(answer.headers) == etag
        )
        if resume and not resumed and answer.status_code != 200:
            answer.close()
            answer = self._answer({})
        size = total if resumed else number(answer.headers.get("Content-Length", ""))
        packed = answer.headers.get("Content-Encoding", "").lower()
        if packed in _UNREADABLE:
            answer.close()
            raise DataError(
                f"{self.name}: the server packs the file by itself ({packed}), which it was asked not "
                "to: have it sent as it is, or as gzip"
            )
        return Body(
            chunks=self._chunks(answer, first=not resumed),
            offset=offset if resumed else 0,
            size=size,
            etag=_etag(answer.headers),
            digests=_digests(answer.headers, whole=not resumed),
        )

    def _chunks(self, answer: "requests.Response", *, first: bool) -> Generator[bytes]:
        import urllib3

        try:
            with answer:
                # Raw: what the server compressed for the way is for the reader to unpack, so that
                # a resumed download and the server's digest speak of the same bytes.
                for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                    if first and chunk.lstrip()[:1] == b"<":
                        raise DataError(
                            f"{self.name}: the server answers with a web page, not with data: is it "
                            "a login page, or a page about the file? Give the address of the file "
                            "itself, and a token in the secret http-token (key HTTP_BEARER_TOKEN) "
                            "if it wants one"
                        )
                    first = False
                    yield chunk
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TryAgain(f"the connection broke: {_reason(error)}") from None

    def _answer(self, headers: Mapping[str, str]) -> "requests.Response":
        """The server's answer, redirects followed; requests keeps the token from other hosts."""
        import requests

        session = requests.Session()
        sent = {"Accept-Encoding": "identity", "User-Agent": "sft-pipeline", **headers}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        try:
            answer = session.get(self.uri, headers=sent, stream=True, timeout=_TIMEOUT)
        # `from None`: these errors quote addresses whole, with the signatures of redirects.
        except requests.exceptions.SSLError as error:
            if "WRONG_VERSION_NUMBER" in str(error):
                raise ConfigError(
                    f"{self.name}: the server speaks no TLS; if it is one of http, write http://"
                ) from None
            raise ConfigError(
                f"{self.name}: the server's certificate is not trusted: {_reason(error)}; "
                "name the file of its CA in REQUESTS_CA_BUNDLE"
            ) from None
        except requests.exceptions.InvalidURL as error:
            raise UsageError(f"{self.name}: not an address to fetch: {_reason(error)}") from None
        except requests.exceptions.TooManyRedirects:
            raise DataError(f"{self.name}: it redirects without end") from None
        except requests.exceptions.InvalidSchema:  # ours is one
            raise DataError(
                f"{self.name}: it redirects to what is no address of the web; give the address of the "
                "file itself"
            ) from None
        except requests.exceptions.RequestException as error:
            raise TryAgain(f"no answer: {_reason(error)}") from None
        except ValueError:  # of urllib's, which requests lets through
            raise DataError(f"{self.name}: it redirects to what is no address") from None
        if answer.status_code == 200 or (
            "Range" in headers and answer.status_code in (206, 412, 416)
        ):
            return answer
        answer.close()
        raise self._refusal(answer)

    def _refusal(self, answer: "requests.Response") -> StepError | TryAgain:
        status = f"{answer.status_code} {answer.reason or ''}".strip()
        if answer.status_code in _TRANSIENT:
            return TryAgain(
                f"the server answers {status}", retry_after(answer.headers.get("Retry-After", ""))
            )
        if answer.status_code in (401, 403):
            state = "was refused" if self.token else "is missing"
            return CredentialsError(
                f"{self.name}: {status}: the token {state}; it belongs in the secret http-token "
                "(key HTTP_BEARER_TOKEN). A presigned link may have expired"
            )
        if answer.status_code in (404, 410):
            return DataError(f"{self.name}: {status}: no such file; check the address")
        return DataError(f"{self.name}: the server answers {status}; check the address")


def _etag(headers: Mapping[str, str]) -> str:
    """A validator that If-Range takes: a strong ETag, else the time of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _digests(headers: Mapping[str, str], *, whole: bool) -> dict[str, str]:
    """The file's digests by RFC 9530 and 3230, S3 and Google; its whole body's by the other headers."""
    stated = [(name, headers.get(f"x-amz-checksum-{name}", "")) for name in DIGESTS]
    lists = ["Repr-Digest", "Digest"]
    # https://cloud.google.com/storage/docs/transcoding: what is stored packed is served unpacked.
    if headers.get("x-goog-stored-content-encoding", "identity") == "identity":
        lists.append("x-goog-hash")
    if whole:
        stated.append(("md5", headers.get("Content-MD5", "")))
        lists.append("Content-Digest")
    for item in ",".join(headers.get(name, "") for name in lists).split(","):
        name, _, value = item.strip().partition("=")
        algorithm = {"sha": "sha1"}.get(name.lower(), name.lower().replace("-", ""))
        stated.append((algorithm, value.strip(":")))
    found = {name: in_hex(name, value) for name, value in stated if name in DIGESTS}
    return {name: value for name, value in found.items() if value}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: BaseException) -> str:
    """What the system says at the bottom of nested errors, whose own text quotes addresses."""
    seen: list[BaseException] = [error]
    for outer in seen:
        inner = [outer.__cause__, outer.__context__, getattr(outer, "reason", None), *outer.args]
        seen += [e for e in inner if isinstance(e, BaseException) and e not in seen]
    for found in reversed(seen):
        if isinstance(found, ssl.SSLCertVerificationError):
            return found.verify_message
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return type(seen[-1]).__name__
