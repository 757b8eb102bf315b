"""Files that lie here: absolute paths and pvc://claim/path; a file, a folder, or a pattern."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from steps import claims
from steps.dataset.sources import DataFile, Fetched, for_training, is_data, is_pattern, matches
from steps.entrypoint import Run
from steps.errors import DataError
from steps.record import Asset

log = logging.getLogger(__name__)


class Local:
    """Files on this machine or on a mounted claim. They are read where they lie."""

    def __init__(self, uri: str, run: Run) -> None:
        self.uri, self.run = uri, run

    def asset(self) -> Asset:
        """The address with an ETag of our own: other sizes or times mean other data."""
        lines = []
        for file in self._files():
            status = file.path.stat()
            lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}\n")
        return Asset(uri=self.uri, etag=hashlib.sha256("".join(lines).encode()).hexdigest()[:32])

    def check(self) -> list[DataFile]:
        """The files."""
        return self._files()

    def fetch(self, into: Path) -> Fetched:  # noqa: ARG002  # nothing has to be brought
        """The files, where they lie."""
        return Fetched(tuple(self._files()))

    def _files(self) -> list[DataFile]:
        parts = self.uri.rstrip("/").split("/")
        wild = next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts))
        base, pattern = "/".join(parts[:wild]), "/".join(parts[wild:])
        path = self._path(base)
        if pattern and (path / pattern).exists():  # a name may have such characters in it
            base, pattern = "/".join(parts), ""
            path = self._path(base)
        if path.is_file() and not pattern:
            return [DataFile(base, path)]
        if not path.is_dir():
            where = "" if str(path) == self.uri else f" ({path})"
            raise DataError(f"{self.uri}: there is no such file or folder{where}; check the path")
        names = [name for name in self._below(path) if is_data(name)]
        if pattern:
            chosen = sorted(name for name in names if matches(name, pattern))
        else:
            chosen = for_training(names)
            if left := len(names) - len(chosen):
                log.info("%s: %d files are named as held-out splits: not read", self.uri, left)
        if not chosen:
            wanted = f"matches {pattern}" if pattern else "is a data file to train on"
            raise DataError(
                f"{self.uri}: nothing in {path} {wanted} "
                "(.jsonl, .json, .parquet, .csv, .arrow; .gz and .zst of them)"
            )
        for name in chosen:
            if re.search("[\ud800-\udfff]", name):
                raise DataError(
                    f"{self.uri}: {name!a} in {path}: its name is not UTF-8: rename the file"
                )
            if not (path / name).exists():
                raise DataError(
                    f"{base}/{name}: a link to what is not there: mend it, or remove it"
                )
        return [DataFile(f"{base}/{name}", path / name) for name in chosen]

    def _path(self, base: str) -> Path:
        on_claim = base.startswith(claims.SCHEME)
        return claims.locate(base, self.run) if on_claim else Path(base or "/")

    def _below(self, folder: Path) -> Iterator[str]:
        """The paths of the files in the folder and those below it; OSError where one may not be read."""

        def refuse(error: OSError) -> None:
            raise error

        for parent, folders, names in os.walk(folder, onerror=refuse):
            # No rows lie there; and of a volume's lost+found only root sees what does.
            folders[:] = [n for n in folders if n != "lost+found" and not n.startswith((".", "_"))]
            inside = Path(parent).relative_to(folder)
            for name in names:
                path = Path(parent, name)
                if path.is_file() or (path.is_symlink() and not path.exists()):
                    yield (inside / name).as_posix()
            for name in folders:
                if Path(parent, name).is_symlink():
                    log.warning(
                        "%s: %s is a link to a folder: not read; name the folder itself",
                        self.uri,
                        Path(parent, name),
                    )
