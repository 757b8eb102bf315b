"""Downloads that survive dropped connections and kills, and are checked before they are used."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from steps import files
from steps.dataset.sources import DataFile
from steps.errors import DataError
from steps.progress import progress
from steps.retries import TryAgain, persist


class Corrupt(Exception):  # noqa: N818  # the same
    """The bytes that came are not those that the server's checksum is of."""


@dataclass(frozen=True)
class Body:
    """An answer that brings a file, or the rest of it."""

    chunks: Iterator[bytes]
    """Raises TryAgain where the connection drops, Corrupt where the client finds wrong bytes."""
    offset: int = 0
    """Where in the file the chunks begin: 0 if the server does not go on where we stopped."""
    size: int | None = None
    """Bytes of the whole file, where the server says so."""
    etag: str = ""
    """Tells this version of the file from others; empty where the server gives nothing."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What the server says the whole file's digests are: hashlib's name of it -> hex; with `-` and a
    number behind it, the digest of the digests of so many parts."""
    part: int = 0
    """Bytes of each part but the last, where there are parts."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _InParts:
    """The digest that S3 gives of an object which was uploaded in parts: that of their digests.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._parts = [hashlib.new(name)]
        self._room = size

    def update(self, data: bytes) -> None:
        """Take the bytes that come next."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._parts.append(hashlib.new(self._name))
                self._room = self._size
            self._parts[-1].update(rest[: self._room])
            taken = min(len(rest), self._room)
            rest, self._room = rest[taken:], self._room - taken

    def hexdigest(self) -> str:
        """Hex, `-` and the number of parts."""
        of_parts = b"".join(part.digest() for part in self._parts)
        return f"{hashlib.new(self._name, of_parts).hexdigest()}-{len(self._parts)}"


class Download:
    """One file on its way into a folder.

    `open_body(offset, etag)` asks for the bytes of that version from the offset on. A finished
    file lies beside a receipt, so whoever comes again, after a kill too, need not ask for it.
    """

    def __init__(self, name: str, open_body: Callable[[int, str], Body], into: Path) -> None:
        self.name, self._open = name, open_body
        # Two objects of one name must not meet in one file; the ending tells the format.
        key = hashlib.sha256(name.encode()).hexdigest()[:16]
        # Bytes: a name has at most 255, and `.partial` and the like are put behind.
        last = name.rpartition("/")[2].encode()[-80:].decode(errors="ignore")
        self.path = into / f"{key}-{last}"
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._receipt = self.path.with_name(f"{self.path.name}.receipt")
        self._furthest = 0
        self._wrong = 0

    def finish(self) -> DataFile:
        """The file, whole and checked against the digests that the server gives.

        Raises TransientError where it does not come, DataError where its bytes stay wrong.
        """
        receipt = self._read()
        if not (self.path.exists() and "sha256" in receipt):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            persist(self._attempt, self.name, self._advanced)
            receipt = self._read()
        return DataFile(self.name, self.path, receipt["sha256"], receipt["etag"] or None)

    def _read(self) -> dict[str, str]:
        try:
            receipt: dict[str, str] = json.loads(self._receipt.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return receipt

    def _advanced(self) -> bool:
        """Whether more of the file is here than ever before."""
        here = self._partial.stat().st_size if self._partial.exists() else 0
        before, self._furthest = self._furthest, max(here, self._furthest)
        return here > before

    def _attempt(self) -> None:
        etag = self._read().get("etag", "")
        # Without a validator nobody can say whether the rest is of the same version.
        offset = self._partial.stat().st_size if etag and self._partial.exists() else 0
        body = self._open(offset, etag)
        if body.offset not in (0, offset):
            raise DataError(f"{self.name}: asked for bytes from {offset}, got {body.offset}")
        whole = hashlib.sha256()
        promised: dict[str, _Digest] = {
            name: _InParts(name, body.part) if "-" in expected else hashlib.new(name)
            for name, expected in body.digests.items()
        }
        digests = [whole, *promised.values()]
        files.write(self._receipt, json.dumps({"etag": body.etag}))
        with self._partial.open("r+b" if body.offset else "wb") as file:
            while file.tell() < body.offset:
                here = file.read(min(1 << 20, body.offset - file.tell()))
                for digest in digests:
                    digest.update(here)
            try:
                self._take(body, file, digests)
            except Corrupt as error:
                self._refuse(str(error))
            if body.size is not None and file.tell() != body.size:
                got = file.tell()
                if got > body.size:
                    file.truncate(0)
                raise TryAgain(f"got {got:,} of {body.size:,} bytes")
            file.flush()
            os.fsync(file.fileno())
        for name, expected in body.digests.items():
            if (found := promised[name].hexdigest()) != expected.lower():
                self._refuse(f"its {name} is {found}, the server says {expected.lower()}")
        self._partial.replace(self.path)
        receipt = {"etag": body.etag, "sha256": whole.hexdigest()}
        files.write(self._receipt, json.dumps(receipt))

    def _take(self, body: Body, file: IO[bytes], digests: Sequence[_Digest]) -> None:
        with progress(f"downloading {self.path.name[17:]}", body.size or 0, "bytes") as shown:
            for chunk in body.chunks:
                file.write(chunk)
                for digest in digests:
                    digest.update(chunk)
                if body.size:
                    shown.update(file.tell())

    def _refuse(self, problem: str) -> None:
        """Wrong bytes once may be the network's fault; twice is the server's."""
        self._partial.unlink()
        self._wrong += 1
        if self._wrong > 1:
            raise DataError(f"{self.name}: corrupt: {problem}, twice; put the file there again")
        raise TryAgain(f"corrupt: {problem}", after=0)


def position(content_range: str) -> tuple[int, int | None]:
    """Where in the file an answer's bytes begin, and how large the file is, by its Content-Range.

    (0, None) of an answer without one, which brings the file from its beginning.
    """
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
    if found is None or (begins := number(found[1])) is None:
        return 0, None
    return begins, number(found[2])


def number(text: str) -> int | None:
    """A number in a header, which a server may fill with anything."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def from_base64(text: str) -> str:
    """A digest in hex that stands in base64 in a header; empty where it is no base64."""
    try:
        return base64.b64decode(text, validate=True).hex()
    except ValueError:
        return ""
