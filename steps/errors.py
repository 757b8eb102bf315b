"""Every failure a step knows how to tell, and the exit code an engine decides by.

The codes are those of sysexits.h, so a retry policy needs the number alone::

    StepError                      1
    ├── UsageError                64  a parameter is unknown, ill-typed or out of range
    ├── DataError                 65  the data or the model is at fault
    │   ├── InvalidRowError       65  one row, told as file:line
    │   ├── NotThereError         65  a cluster has no such object
    │   └── ExistsError           65  it has one of that name
    ├── VolumeError               74  the volume is full, read-only or broken
    ├── TransientError            75  something outside does not answer; the only one retried
    │   └── NotServedError        75  a cluster does not know such objects, or what is before it says so
    ├── CredentialsError          77  a credential is missing or refused
    │   └── ForbiddenError        77  known to the cluster, but without the right
    └── ConfigError               78  the surroundings are set up wrongly
        └── TooLargeError         78  a cluster does not take so much at once

A message begins at the place that someone has to open and ends with what to do.
"""

import errno
import os
import re
from pathlib import Path


class StepError(Exception):
    """A failure with a message for the user; anything else is a bug."""

    exit_code = 1


class UsageError(StepError):
    """A parameter cannot be used as given."""

    exit_code = os.EX_USAGE


class DataError(StepError):
    """The data or the model is missing, empty or invalid; running again changes nothing."""

    exit_code = os.EX_DATAERR


class InvalidRowError(DataError):
    """One row of a file is at fault."""

    def __init__(self, path: Path | str, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


class NotThereError(DataError):
    """A cluster has no such object."""


class ExistsError(DataError):
    """A cluster has an object of that name."""


class VolumeError(StepError):
    """The volume cannot be written or read."""

    exit_code = os.EX_IOERR


class TransientError(StepError):
    """Something outside does not answer for now; the step has already tried for a while."""

    exit_code = os.EX_TEMPFAIL


class NotServedError(TransientError):
    """A cluster does not know objects of this kind; some proxies say the same of one that is away."""


class CredentialsError(StepError):
    """A credential is missing or refused; the message names the secret and its key."""

    exit_code = os.EX_NOPERM


class ForbiddenError(CredentialsError):
    """The right to do this in a cluster is missing."""


class ConfigError(StepError):
    """The surroundings are set up wrongly: half a secret, no such runtime, a refused job."""

    exit_code = os.EX_CONFIG


class TooLargeError(ConfigError):
    """More was sent to a cluster than it takes at once."""


class Terminated(SystemExit):
    """SIGTERM arrived. State is kept; the same command goes on.

    A SystemExit, because asyncio lets only that and KeyboardInterrupt out of its callbacks.
    """

    exit_code = 143

    def __init__(self) -> None:
        super().__init__(self.exit_code)


_VOLUME_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG}
_ACCESS_ERRNOS = {errno.EACCES, errno.EPERM}
_SHOWN = 80  # characters of a name that is too long

# Libraries in other languages tell it in their own words: those in Rust (safetensors) with the
# number, torch's file writer without.
_VOLUME_TEXTS = ("No space left on device", "enforce fail at inline_container.cc")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def volume_error(error: BaseException, writing: Path | None = None) -> StepError | None:
    """The VolumeError behind `error`, where a volume that is full, broken or not ours caused it.

    A name that is longer than any volume takes was given so: that is a UsageError.

    It names the file, or what was being written where the error does not tell which. Libraries wrap the operating system's error in their own, so its causes are looked at too.
    """
    for seen in causes(error):
        if isinstance(seen, OSError) and seen.errno in _VOLUME_ERRNOS:
            name = seen.filename or writing
            where = f"{name}: " if name else ""
            return VolumeError(
                f"{where}{seen.strerror}: free or enlarge the volume, then run the same command"
            )
        if isinstance(seen, OSError) and seen.errno == errno.ENAMETOOLONG:
            name = str(seen.filename or writing or "a name")
            return UsageError(f"{name[:_SHOWN]}{'...' * (len(name) > _SHOWN)}: {seen.strerror}")
        if isinstance(seen, OSError) and seen.errno in _ACCESS_ERRNOS and seen.filename:
            return VolumeError(
                f"{seen.filename}: {seen.strerror}: let user {os.getuid()} of group {os.getgid()} "
                "in there (in a pod: fsGroup), then run the same command"
            )
        number = _OS_ERROR.search(str(seen))
        if (number and int(number[1]) in _VOLUME_ERRNOS) or any(
            text in str(seen) for text in _VOLUME_TEXTS
        ):
            return VolumeError(
                f"{writing or 'the volume'}: cannot be written ({seen}): free or enlarge the volume, "
                "then run the same command"
            )
    return None


def causes(error: BaseException) -> list[BaseException]:
    """The error and all that caused it, the last the first."""
    found: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None:
        found.append(seen)
        seen = seen.__cause__ or seen.__context__
    return found
