"""Write a number, after waiting on a pipe if told so, or fail in a chosen way."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from pydantic import Field, NonNegativeInt, SecretStr

from steps import entrypoint, errors, files
from steps.entrypoint import Run
from steps.params import Address, Man, Masked, Place, StepParams
from steps.progress import progress
from steps.record import Asset, Result


class CountParams(StepParams):
    """Count to a number."""

    step: ClassVar[str] = "count"

    number: Man[NonNegativeInt]
    """Count to this."""
    wait: str = ""
    """Path of a named pipe to read before the end."""
    fail: str = ""
    """Name of an error class to raise, or `bug`, `full` or `denied`."""
    fail_check: str = ""
    """Name of an error class that the check raises."""
    wait_check: str = ""
    """Path of a named pipe that the check reads."""
    leave: str = ""
    """Path of a named pipe that a process, left behind, holds with this one's output."""
    password: SecretStr = SecretStr("")
    """Printed, to see whether it is hidden."""
    variables: Masked[str] = "A=1"
    """May hold secrets."""
    source: Address[Place[str]] = ""
    """An address that may hold a secret."""
    place: Place[str] = ""
    """A path."""
    places: Place[list[str]] = Field(default=[])
    """Paths and names."""


def check(params: CountParams, run: Run) -> None:
    if params.wait_check:
        Path(params.wait_check).read_text()
    if params.fail_check:
        raise getattr(errors, params.fail_check)("the check says no")


def inputs(params: CountParams, run: Run) -> dict[str, Asset]:
    return {}


def main(params: CountParams, run: Run) -> Result:
    print("printed by a library")  # noqa: T201
    entrypoint.log.info("the password is %s", params.password.get_secret_value())
    with progress("counting", params.number, "numbers") as shown:
        shown.update(params.number)
    path = run.workspace.root / "count.txt"
    files.write(path, str(params.number))
    files.write(run.workspace.root / "given.txt", f"{params.variables} {params.source}")
    files.write(run.workspace.root / "arguments.txt", "\n".join(sys.orig_argv))
    if params.leave:
        with Path(params.leave).open("w") as held:
            lasting = [sys.executable, "-c", "import signal; signal.pause()"]
            subprocess.Popen(lasting, pass_fds=[held.fileno()])
    if params.wait:
        Path(params.wait).read_text()
    if params.fail == "bug":
        raise RuntimeError("a bug")
    if params.fail == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if params.fail == "denied":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if params.fail:
        raise getattr(errors, params.fail)("count.txt:1: it failed")
    return Result(
        outputs={"count": Asset.of(path, run.workspace)},
        metrics={"number": params.number, "nan": float("nan")},
        results={"number": str(params.number)},
    )


if __name__ == "__main__":
    entrypoint.run(main, CountParams, inputs=inputs, check=check)
