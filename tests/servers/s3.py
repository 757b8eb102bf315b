"""Moto's S3 server on loopback with its authentication on: keys, signatures and policies count."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BUCKET = "sets"
_POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": "*"}]}'


class S3:
    """The server, while its context lasts, with a user who may do all with buckets."""

    def __init__(self) -> None:
        self.key = self.secret = self._role = ""
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What the secret s3-secret would set."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.url,
        }

    @property
    def client(self) -> "S3Client":
        """A client of that user."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    def session(self) -> dict[str, str]:
        """Keys that hold for a while, with their token, of a role."""
        sts = boto3.client(
            "sts",
            endpoint_url=self.url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )
        role = sts.assume_role(RoleArn=self._role, RoleSessionName="test")
        found = role["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
            "AWS_SESSION_TOKEN": found["SessionToken"],
        }

    def put(self, key: str, content: bytes, **options: str) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, **options)  # type: ignore[arg-type]

    def put_in_parts(self, key: str, parts: list[bytes], algorithm: str | None) -> None:
        """Store an object as those do who upload large ones."""
        client: Any = self.client
        where = {"Bucket": BUCKET, "Key": key}
        kind = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        where["UploadId"] = client.create_multipart_upload(**where, **kind)["UploadId"]
        done = []
        for number, part in enumerate(parts, start=1):
            answer = client.upload_part(**where, **kind, PartNumber=number, Body=part)
            kept = {
                name: answer[name] for name in ("ETag", f"Checksum{algorithm}") if name in answer
            }
            done.append({"PartNumber": number, **kept})
        client.complete_multipart_upload(**where, MultipartUpload={"Parts": done})

    def __enter__(self) -> "S3":
        port = self.url.rpartition(":")[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait(self._process)
        self._checked_after("1000")
        iam = boto3.client(
            "iam",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}),
        )
        iam.create_user(UserName="owner")
        iam.put_user_policy(UserName="owner", PolicyName="all", PolicyDocument=_POLICY)
        role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=_POLICY)
        iam.put_role_policy(RoleName="reader", PolicyName="all", PolicyDocument=_POLICY)
        self._role = role["Role"]["Arn"]
        made = iam.create_access_key(UserName="owner")["AccessKey"]
        self.key, self.secret = made["AccessKeyId"], made["SecretAccessKey"]
        self._checked_after("0")
        self.client.create_bucket(Bucket=BUCKET)
        return self

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5).close()
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None
                time.sleep(0.05)
            else:
                return

    def _checked_after(self, requests: str) -> None:
        """Have signatures checked after so many more requests."""
        urllib.request.urlopen(
            urllib.request.Request(
                f"{self.url}/moto-api/reset-auth",
                requests.encode(),
                {"Content-Type": "text/plain"},
            )
        ).close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
