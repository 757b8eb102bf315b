"""Delete the TrainJob of a run that was stopped by hand; of any other it stays, for a retry finds it.

python -m steps.train.stop --workspace /volume/runs/one --namespace team-a --failures "$FAILURES"
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from steps import logs
from steps.entrypoint import Run
from steps.errors import StepError
from steps.params import Bound
from steps.train.params import TrainParams
from steps.train.trainjob.manifest import name

log = logging.getLogger("steps.train.stop")  # run as __main__

# Argo's words for nodes that `argo stop` has ended, in `workflow.failures`.
_STOPPED = ("Stopped with strategy", "workflow shutdown with strategy")


def main(argv: Sequence[str] | None = None) -> int:
    """Delete the run's TrainJob where it was stopped; an engine's exit handler."""
    parser = argparse.ArgumentParser(prog="python -m steps.train.stop", description=__doc__)
    parser.add_argument("--workspace", required=True, help="folder of the run")
    parser.add_argument("--run-name", default="", help="name of the run")
    parser.add_argument("--volume-claim", default="", help="claim that holds the workspace")
    parser.add_argument("--volume-path", default="", help="path of the workspace inside that claim")
    parser.add_argument("--namespace", default="", help="namespace of the run")
    parser.add_argument("--cluster-auth", default="secret", help="who deletes the TrainJob")
    parser.add_argument("--failures", default="", help="what failed, as Argo's workflow.failures")
    given = vars(parser.parse_args(argv))
    logs.set_up("train", "INFO")
    failures = given.pop("failures")
    if not any(words in failures for words in _STOPPED):
        log.info("the run was not stopped: its TrainJob, if it has one, is left to a retry")
        return 0
    params = TrainParams.model_validate({"cluster_auth": given.pop("cluster_auth")})
    try:
        _delete(params, Run(Bound.model_validate(given)))
    except StepError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def _delete(params: TrainParams, run: Run) -> None:
    from steps.train.trainjob import objects
    from steps.train.trainjob.cluster import connect

    cluster = connect(params, run.bound.namespace)
    job, _ = objects.find(cluster, name(run))
    if job is None:
        log.info("the run was stopped, and has no TrainJob")
        return
    # It stays until its workers have kept a last checkpoint: a retry waits for that.
    objects.delete(cluster, job)
    log.info("the run was stopped: its TrainJob %s is deleted", name(run))


if __name__ == "__main__":
    sys.exit(main())
