"""What is at work in a run's folder: two trainings there would write over each other's checkpoints.

A step holds a lock as long as it lives. A TrainJob outlives the step that sent it, and without the way to
its cluster only a note in the folder tells that it was started and not yet seen to end.
"""

import contextlib
import fcntl
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from steps import files
from steps.errors import ConfigError, TransientError
from steps.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """The TrainJob that may be at work in a run's folder."""

    name: str
    namespace: str
    server: str

    def note(self, workspace: Workspace) -> None:
        """Leave the note."""
        files.write(workspace.started, json.dumps(asdict(self)))


@contextlib.contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """Raise TransientError where another train step is at work here, on this machine or elsewhere."""
    path = workspace.train_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransientError(
                f"{path}: another train step is at work in this folder; two would write over each other's "
                "checkpoints. Run the same command again when it has ended"
            ) from error
        except OSError as error:  # not every volume has locks
            log.debug("%s: %s", path, error)
        yield


def refuse_another(workspace: Workspace, own: tuple[str, str] | None = None) -> None:
    """Raise ConfigError where a TrainJob may be at work here; but for one's own, by namespace and name."""
    try:
        there = Started(**json.loads(workspace.started.read_bytes()))
    except FileNotFoundError:
        return
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{workspace.started}: does not tell which TrainJob was started for this folder ({error}): "
            "see kubectl get trainjobs --all-namespaces; when none trains here, remove this file and "
            "run the same command"
        ) from error
    if (there.namespace, there.name) == own:
        return
    raise ConfigError(
        f"{workspace.started}: TrainJob {there.namespace}/{there.name} ({there.server}) was started for "
        "this folder and not seen to end; two trainings would write over each other's checkpoints. "
        "Go on with it, as the run that has started it (--launcher trainjob), or end it: kubectl delete "
        f"trainjob {there.name} -n {there.namespace} --cascade=foreground --ignore-not-found; when "
        f"kubectl get pods -l jobset.sigs.k8s.io/jobset-name={there.name} -n {there.namespace} shows "
        "none, remove this file and run the same command"
    )
