"""The note in a run's folder that a TrainJob was started for it and not yet seen to end.

A TrainJob outlives the step that sent it. Whoever trains in its folder meanwhile would write over its
checkpoints, and it over theirs; without the way to its cluster only this note tells of it.
"""

import json
from dataclasses import asdict, dataclass

from steps import files
from steps.errors import ConfigError
from steps.workspace import Workspace


@dataclass(frozen=True)
class Started:
    """The TrainJob that may be at work in a run's folder."""

    name: str
    namespace: str
    server: str

    def note(self, workspace: Workspace) -> None:
        """Leave the note."""
        files.write(workspace.started, json.dumps(asdict(self)))


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
