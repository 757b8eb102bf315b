"""Base models in a folder: a path of this machine or of a claim."""

import logging
from dataclasses import dataclass
from pathlib import Path

from steps import files
from steps.base_model.model import Examined, ModelSource, examine
from steps.errors import DataError

log = logging.getLogger(__name__)

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Folder:
    """A model that lies here already, in Hugging Face format."""

    uri: str
    path: Path
    portable: bool

    def at(self, revision: str) -> "Folder":  # noqa: ARG002
        """Itself: a folder has no revisions, only its digest."""
        return self

    def check(self) -> Examined:
        """See Source."""
        if not self.path.is_dir():
            what = "a file, not a folder" if self.path.exists() else "not there"
            raise DataError(f"{self.uri}: {what}; name the folder of a model")
        entries = [entry for entry in self.path.iterdir() if entry.is_file()]
        for entry in entries:
            with entry.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise DataError(
                        f"{entry}: a Git LFS pointer, not the file; run `git lfs pull` there"
                    )
        examine(self.uri, {entry.name for entry in entries}, self._read)
        return Examined(self.path, self.path)

    def fetch(self) -> ModelSource:
        """See Source. Reads every file for the digest."""
        self.check()
        log.info("reading the model %s for its digest", self.uri)
        return ModelSource(
            self.uri, self.path, sha256=files.digest(self.path), portable=self.portable
        )

    def _read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")
