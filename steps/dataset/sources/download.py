"""Downloads that survive dropped connections and kills, and are checked before they are used."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from steps import files
from steps.dataset.sources import DataFile
from steps.errors import DataError
from steps.progress import progress
from steps.retries import TryAgain, persist


@dataclass(frozen=True)
class Body:
    """An answer that brings a file, or the rest of it."""

    chunks: Iterator[bytes]
    """Raises TryAgain where the connection drops."""
    offset: int = 0
    """Where in the file the chunks begin: 0 if the server does not go on where we stopped."""
    size: int | None = None
    """Bytes of the whole file, where the server says so."""
    etag: str = ""
    """Tells this version of the file from others; empty where the server gives nothing."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What the server says the whole file's digests are: name, one of DIGESTS -> hex; with `-` and a
    number behind it, the digest of the digests of so many parts."""
    part: int = 0
    """Bytes of each part but the last, where there are parts."""


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


class _Crc:
    """The checksums that S3 has beside digests."""

    def __init__(self, name: str, size: int) -> None:
        from awscrt import checksums

        self._function, self._size, self._value = getattr(checksums, name), size, 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the bytes that come next."""
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        """The checksum in network order."""
        return self._value.to_bytes(self._size, "big")

    def hexdigest(self) -> str:
        """The same in hex."""
        return self.digest().hex()


_CRCS = {"crc32": 4, "crc32c": 4, "crc64nvme": 8}
DIGESTS = ("md5", "sha1", "sha256", "sha512", *_CRCS)
"""What a server's digest may be."""


def _new(name: str) -> _Digest:
    return _Crc(name, _CRCS[name]) if name in _CRCS else hashlib.new(name)


class _InParts:
    """The digest that S3 gives of an object which was uploaded in parts: that of their digests.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._parts = [_new(name)]
        self._room = size

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the bytes that come next."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._parts.append(_new(self._name))
                self._room = self._size
            self._parts[-1].update(rest[: self._room])
            taken = min(len(rest), self._room)
            rest, self._room = rest[taken:], self._room - taken

    def digest(self) -> bytes:
        """The digest of the parts' digests."""
        whole = _new(self._name)
        whole.update(b"".join(part.digest() for part in self._parts))
        return whole.digest()

    def hexdigest(self) -> str:
        """Hex, `-` and the number of parts."""
        return f"{self.digest().hex()}-{len(self._parts)}"


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

    def _read(self) -> dict[str, Any]:
        try:
            receipt: dict[str, Any] = json.loads(self._receipt.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return receipt

    def _advanced(self) -> bool:
        """Whether more of the file is here than ever before."""
        here = self._partial.stat().st_size if self._partial.exists() else 0
        before, self._furthest = self._furthest, max(here, self._furthest)
        return here > before

    def _attempt(self) -> None:
        receipt = self._read()
        etag = receipt.get("etag", "")
        # Without a validator nobody can say whether the rest is of the same version.
        offset = self._partial.stat().st_size if etag and self._partial.exists() else 0
        body = self._open(offset, etag)
        if body.offset not in (0, offset):
            raise DataError(f"{self.name}: asked for bytes from {offset}, got {body.offset}")
        # An answer that brings the rest may leave out what the first one said of the whole.
        before = receipt if body.offset else {}
        expected = {**before.get("digests", {}), **body.digests}
        part = body.part or before.get("part", 0)
        whole = hashlib.sha256()
        promised: dict[str, _Digest] = {
            name: _InParts(name, part) if "-" in value else _new(name)
            for name, value in expected.items()
        }
        digests = [whole, *promised.values()]
        with self._partial.open("r+b" if body.offset else "wb") as file:
            # After the older version's bytes are gone: a receipt is never of other bytes.
            receipt = {"etag": body.etag, "digests": expected, "part": part}
            files.write(self._receipt, json.dumps(receipt))
            while file.tell() < body.offset:
                here = file.read(min(1 << 20, body.offset - file.tell()))
                for digest in digests:
                    digest.update(here)
            self._take(body, file, digests)
            if body.size is not None and file.tell() != body.size:
                got = file.tell()
                if got > body.size:
                    file.truncate(0)
                raise TryAgain(f"got {got:,} of {body.size:,} bytes")
            file.flush()
            os.fsync(file.fileno())
        for name, value in expected.items():
            if (found := promised[name].hexdigest()) != value:
                self._refuse(f"its {name} is {found}, the server says {value}")
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


def in_hex(name: str, text: str) -> str:
    """A digest in hex that stands in a header, in base64 or, as some servers have it, in hex.

    Empty where it is none of that name.
    """
    size = len(_new(name).digest())
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", text):
        return text.lower()
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        return ""
    return found.hex() if len(found) == size else ""
