"""One node of a training on a cluster: what the container of a TrainJob runs.

python -m steps.train.worker /volume/runs/first/checkpoints/job.json
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from steps import logs
from steps.entrypoint import set_up_libraries, share_cores
from steps.errors import StepError, Terminated, UsageError, volume_error
from steps.train import instructlab
from steps.train.backend import Job
from steps.train.node import this_node

log = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
"""What is written here becomes the container's message in the pod's status."""
_MOST_BYTES = 4096  # Kubernetes keeps no more


def main(argv: list[str], environ: Mapping[str, str]) -> None:
    """Train this node's part of the job, to the end or until SIGTERM.

    Node 0 leaves the model in the job's `checkpoints/model`.
    """
    if len(argv) != 1:
        raise UsageError("usage: python -m steps.train.worker JOB.json")
    node = this_node(environ)
    job = Job.read(Path(argv[0]))
    log.info("%s trains %s", node, job.base)
    instructlab.train_node(job, node, level=logging.INFO)
    if node.rank == 0:
        instructlab.results(job)


def _fail(told: object, code: int) -> NoReturn:
    """Leave with the code, and the message where Kubernetes looks for it."""
    log.error("%s", told)
    leave_message(told)
    sys.exit(code)


def leave_message(told: object, path: Path = TERMINATION_LOG) -> None:
    """Leave the first line for the pod's status, where there is such a file."""
    first = logs.redact(str(told)).partition("\n")[0]
    if path.exists():
        with contextlib.suppress(OSError):  # a courtesy: never a reason to fail otherwise
            path.write_bytes(first.encode()[:_MOST_BYTES])


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    logs.set_up("train", "INFO")
    set_up_libraries()
    share_cores()
    try:
        main(sys.argv[1:], os.environ)
    except StepError as error:
        _fail(error, error.exit_code)
    except Terminated:
        _fail("terminated; the next attempt goes on", Terminated.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the next attempt goes on", 130)
    except Exception as error:
        known = volume_error(error)
        if known is not None:
            _fail(known, known.exit_code)
        log.critical("this is a bug: %s", "".join(traceback.format_exception(error)).rstrip())
        _fail(f"{type(error).__name__}: {error}", StepError.exit_code)
