"""s3://bucket/key, a prefix, or a pattern, by boto3: AWS, and whatever speaks its protocol."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steps.dataset.params import S3_SECRET
from steps.dataset.sources import DataFile, Fetched, for_training, is_data, is_pattern, matches
from steps.dataset.sources.download import DIGESTS, Body, Download, in_hex, position
from steps.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    StepError,
    TransientError,
    UsageError,
)
from steps.record import Asset
from steps.retries import TryAgain
from steps.secrets import environment, in_header

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_ATTEMPTS = 5
_SECRET = "the secret s3-secret (keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"  # noqa: S105
_REFUSED = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken",
            "InvalidIdentityToken", "ExpiredTokenException",  # the web identity's
            "TokenRefreshRequired", "RequestTimeTooSkewed", "AccessDenied", "403", "401",
            "AllAccessDisabled", "AccountProblem", "NotSignedUp")  # fmt: skip
_BUSY = (429, 500, 502, 503, 504)
_MISSING = ("NoSuchKey", "404", "NotFound", "NoSuchBucket")
_ELSEWHERE = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
_REDIRECTED = "the server sends us to another address"
_OWN_ADDRESS = (
    "set AWS_ENDPOINT_URL (https:// where it wants that) and AWS_DEFAULT_REGION in the secret "
    "s3-secret to the bucket's own"
)


class S3:
    """Objects of a bucket."""

    def __init__(self, uri: str, auth: Literal["secret", "ambient", "anonymous"]) -> None:
        # No urlsplit: a key may hold `?` and `#`.
        self.uri, self.auth = uri, auth
        self.bucket, _, self.key = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise UsageError(f"{uri}: write s3://<bucket>/<key>")

    def asset(self) -> Asset:
        """The address: what it stands for is fixed by the run that downloads it."""
        return Asset(uri=self.uri)

    def check(self) -> list[DataFile]:
        """The objects are listed, and the first one may be read."""
        self._get(self._keys()[0])["Body"].close()
        return []

    def fetch(self, into: Path) -> Fetched:
        """The objects, downloaded."""
        return Fetched(tuple(self._download(key, into) for key in self._keys()))

    def _download(self, key: str, into: Path) -> DataFile:
        def open_body(offset: int, etag: str) -> Body:
            return self._open(key, offset, etag)

        return Download(f"s3://{self.bucket}/{key}", open_body, into).finish()

    @cached_property
    def _client(self) -> "S3Client":
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        endpoint = environment("AWS_ENDPOINT_URL") or environment("AWS_S3_ENDPOINT")
        if endpoint and "://" not in endpoint:
            endpoint = f"https://{endpoint}"
        config = Config(
            retries={"mode": "standard", "max_attempts": _ATTEMPTS},
            connect_timeout=10,
            read_timeout=60,
            # Servers that are not AWS's know no bucket.host names.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Download checks the digests, of resumed files too.
            response_checksum_validation="when_required",
            signature_version=UNSIGNED if self.auth == "anonymous" else None,
        )
        key, secret, token = self._keys_of_secret()
        region = environment("AWS_DEFAULT_REGION") or environment("AWS_REGION") or "us-east-1"
        try:
            client = boto3.Session().client(
                "s3",
                endpoint_url=endpoint or None,
                region_name=region,
                config=config,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                aws_session_token=token,
            )
        except ValueError as error:
            raise ConfigError(
                f"{self.uri}: {error}: check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION in the secret "
                "s3-secret"
            ) from error
        # For the checksums alone: boto3, asked by its own parameter, would hold those of the whole
        # against the rest that some servers send them with.
        client.meta.events.register(
            "before-call.s3.GetObject",
            lambda params, **_: params["headers"].update({"x-amz-checksum-mode": "ENABLED"}),
        )
        return client

    def _keys_of_secret(self) -> tuple[str | None, str | None, str | None]:
        """Access key, secret key and session token; none where others than the secret decide."""
        if self.auth != "secret":
            return None, None, None
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        key, secret = (environment(name) for name in names)
        if not key and not secret:
            raise CredentialsError(
                f"{self.uri}: S3 credentials missing: fill {_SECRET}; for a role or a web identity "
                "set --s3-auth ambient, for a public bucket --s3-auth anonymous"
            )
        if not key or not secret:
            raise ConfigError(
                f"{self.uri}: S3 credentials misconfigured: the secret s3-secret has no "
                f"{names[bool(key)]}; fill both keys"
            )
        token = environment("AWS_SESSION_TOKEN")
        for name, value in zip((*names, "AWS_SESSION_TOKEN"), (key, secret, token), strict=True):
            in_header(value, S3_SECRET, name)
        return key, secret, token or None

    def _keys(self) -> list[str]:
        """The key itself, or those below it as a folder, or those that fit the pattern."""
        if self.key and not self.key.endswith("/"):
            try:
                self._get(self.key)["Body"].close()
            except _NoSuchKeyError:
                pass
            else:
                return [self.key]
        chosen: list[str] = []
        if is_pattern(self.key):
            fixed = re.split(r"[*?\[]", self.key, maxsplit=1)[0]
            names = [key for key in self._list(fixed) if matches(key, self.key)]
            chosen = sorted(name for name in names if not name.endswith("/"))
        if not chosen:  # a folder, whose name may have such characters in it
            folder = f"{self.key.rstrip('/')}/" if self.key else ""
            names = [key.removeprefix(folder) for key in self._list(folder)]
            data = [name for name in names if is_data(name)]
            chosen = [folder + name for name in for_training(data)]
            if left := len(data) - len(chosen):
                log.info("%s: %d objects are named as held-out splits: not read", self.uri, left)
        if not chosen:
            raise DataError(
                f"{self.uri}: in the bucket {self.bucket!r} there is no object with the key "
                f"{self.key!r}, and no data below it; check both"
            )
        return chosen

    def _list(self, prefix: str) -> list[str]:
        with self._telling(prefix):
            pages: list[Any] = [
                *self._client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.bucket, Prefix=prefix
                )
            ]
            if pages[-1].get("IsTruncated"):  # old servers answer as to the first version of it
                pages = [
                    *self._client.get_paginator("list_objects").paginate(
                        Bucket=self.bucket, Prefix=prefix
                    )
                ]
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _get(self, key: str, **options: str) -> Any:
        """The answer to GetObject, its body unread: HEAD would not tell why it is refused."""
        with self._telling(key):
            return self._client.get_object(Bucket=self.bucket, Key=key, **options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _telling(self, key: str) -> Iterator[None]:
        """Raise what boto3's errors mean here."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except RecursionError as error:
            # A redirect makes botocore ask in which region the bucket is; that is redirected too.
            raise ConfigError(f"s3://{self.bucket}/{key}: {_REDIRECTED}: {_OWN_ADDRESS}") from error
        except (ClientError, BotoCoreError) as error:
            raise self._told(error, key) from error

    def _open(self, key: str, offset: int, etag: str) -> Body:
        resume = {"Range": f"bytes={offset}-", "IfMatch": etag} if offset else {}
        try:
            answer = self._get(key, **resume)
        except _ChangedError:
            answer = self._get(key)
        # Not every server that speaks S3 heeds Range, or says what AWS says.
        begins, size = position(answer.get("ContentRange", ""))
        partial = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        other = begins != offset or size is None or bool(offset and answer.get("ETag", "") != etag)
        if partial and other:
            answer["Body"].close()
            answer = self._get(key)
            begins, size = 0, None
        if size is None and "ContentLength" in answer:
            size = begins + answer["ContentLength"]
        digests, part = _digests(answer), 0
        number = max((int(digest.partition("-")[2] or 0) for digest in digests.values()), default=0)
        if number and not (part := self._size_of_parts(key, number, size)):
            digests = {name: digest for name, digest in digests.items() if "-" not in digest}
        return Body(
            chunks=self._chunks(answer["Body"]),
            offset=begins,
            size=size,
            etag=answer.get("ETag", ""),
            digests=digests,
            part=part,
        )

    def _size_of_parts(self, key: str, number: int, size: int | None) -> int:
        """Bytes of each part but the last; 0 where the server does not tell, or they differ."""
        from botocore.exceptions import ClientError

        sizes = []
        for part in (1, number):
            with self._telling(key):
                try:
                    answer = self._client.head_object(Bucket=self.bucket, Key=key, PartNumber=part)
                except ClientError as error:
                    if error.response["ResponseMetadata"]["HTTPStatusCode"] in _BUSY:
                        raise
                    return 0  # not every server knows parts once they are put together
            if answer.get("PartsCount") != number:
                return 0
            sizes.append(answer["ContentLength"])
        first, last = sizes
        return first if last <= first and first * (number - 1) + last == size else 0

    def _chunks(self, body: Any) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError, IncompleteReadError
        from urllib3.exceptions import HTTPError

        try:
            yield from body.iter_chunks(_CHUNK)
        except (BotoCoreError, IncompleteReadError, HTTPError, OSError) as error:
            raise TryAgain(f"the connection broke: {type(error).__name__}") from error
        finally:
            body.close()

    def _told(self, error: Exception, key: str) -> StepError:
        """The error that says what AWS's codes and botocore's exceptions mean here."""
        from botocore import exceptions as boto

        where = f"s3://{self.bucket}/{key}"
        if isinstance(error, boto.ClientError):
            return self._refusal(error.response, where)
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            return CredentialsError(
                f"{where}: S3 credentials missing: --s3-auth ambient finds neither a role nor a "
                "web identity nor keys; give the pod's service account one"
            )
        if isinstance(error, boto.ProfileNotFound | boto.ConfigParseError):
            return ConfigError(f"{where}: {error}; check AWS_PROFILE and AWS_CONFIG_FILE")
        if isinstance(error, boto.SSLError) and "WRONG_VERSION_NUMBER" in str(error):
            return ConfigError(
                f"{where}: the server speaks no TLS; if it is one of http, write http:// before its "
                "address in AWS_ENDPOINT_URL"
            )
        if isinstance(error, boto.SSLError):
            return ConfigError(
                f"{where}: the server's certificate is not trusted; "
                f"name the file of its CA in AWS_CA_BUNDLE: {error}"
            )
        if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError):
            return UsageError(f"{where}: not an address of S3: {error}")
        return TransientError(f"{where}: no answer, {_ATTEMPTS} times in a row: {error}")

    def _refusal(self, response: Mapping[str, Any], where: str) -> StepError:
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = f"{code}: {response.get('Error', {}).get('Message', '')}".strip(": ")
        if code == "NoSuchBucket":
            return DataError(
                f"{where}: there is no bucket {self.bucket!r} ({said}); check its name"
            )
        if code in _MISSING:
            return _NoSuchKeyError(f"{where}: there is no such object ({said}); check the key")
        if status == 412 or code in ("PreconditionFailed", "InvalidRange"):
            return _ChangedError(f"{where}: it has changed")
        if code in ("301", "302", "307", "308"):
            return ConfigError(f"{where}: {_REDIRECTED} ({said}): {_OWN_ADDRESS}")
        if code in _ELSEWHERE:
            return ConfigError(
                f"{where}: the bucket is in another region ({said}); "
                "set AWS_DEFAULT_REGION in the secret s3-secret"
            )
        if code == "InvalidObjectState":
            return DataError(f"{where}: archived ({said}): restore it first")
        if code in _REFUSED or status in (401, 403):
            keys = {
                "secret": f"check {_SECRET}",
                "ambient": "check the role of the pod's service account",
                "anonymous": "the bucket is not public: --s3-auth secret takes the keys of s3-secret",
            }
            return CredentialsError(f"{where}: refused ({said}); {keys[self.auth]}")
        if status >= 500 or status == 429 or code in ("SlowDown", "Throttling", "RequestTimeout"):
            return TransientError(
                f"{where}: the server answers {said or status}, {_ATTEMPTS} times in a row; "
                "run the same command again later"
            )
        return DataError(f"{where}: the server answers {said or status}")


class _NoSuchKeyError(DataError):
    """There is no object of that key; others may have it as their prefix."""


class _ChangedError(DataError):
    """The object is not the version that was asked for."""


def _digests(answer: Mapping[str, Any]) -> dict[str, str]:
    """The object's own digests; those of its parts' digests have `-` and the number of parts behind."""
    found = {}
    for name in DIGESTS:
        value, dash, parts = answer.get(f"Checksum{name.upper()}", "").partition("-")
        if digest := in_hex(name, value):
            found[name] = f"{digest}{dash}{parts}"
    etag = answer.get("ETag", "").strip('"')
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html: with KMS and SSE-C the ETag is
    # no MD5. One of a single part is random on some servers.
    sealed = answer.get("ServerSideEncryption", "AES256") != "AES256"
    known = not sealed and not answer.get("SSECustomerAlgorithm")
    if known and re.fullmatch("[0-9a-f]{32}(-([2-9]|[1-9][0-9]+))?", etag):
        found["md5"] = etag
    return found
