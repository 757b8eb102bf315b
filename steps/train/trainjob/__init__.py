"""Training on a cluster: a TrainJob of Kubeflow Trainer, submitted and followed to its end."""

import logging
import time
from typing import TYPE_CHECKING

from steps import files
from steps.entrypoint import Run
from steps.errors import StepError
from steps.progress import progress
from steps.train.backend import Job, Point
from steps.train.params import TrainParams
from steps.train.started import Started, refuse_another
from steps.train.trainjob import limits, manifest
from steps.train.trainjob.patience import Pace, Patience
from steps.train.trainjob.plan import describe, place

if TYPE_CHECKING:
    from steps.train.trainjob.cluster import Cluster

__all__ = ["check", "describe", "end_other", "place", "refusals", "train"]

log = logging.getLogger(__name__)


def refusals(params: TrainParams) -> list[str]:
    """What is wrong with the parameters of a TrainJob."""
    return limits.refusals(params)


def check(params: TrainParams, run: Run) -> None:
    """Raise what `train` would where the way to the cluster, the claim, or the runtime is missing."""
    from steps.train.trainjob import runtimes
    from steps.train.trainjob.cluster import connect

    cluster, pace = connect(params, run.bound.namespace), Pace()
    manifest.refuse_homeless(run)
    refuse_another(run.workspace, own=(cluster.namespace, manifest.name(run)))
    Patience(pace).ask(lambda: runtimes.find(cluster, params), pace.first_look)


def end_other(params: TrainParams, run: Run, pace: Pace | None = None) -> None:
    """Delete the run's TrainJob where it makes another result, and wait until its workers are gone."""
    from steps.train.trainjob import submit
    from steps.train.trainjob.cluster import connect

    cluster = connect(params, run.bound.namespace)
    submit.remove_other(cluster, manifest.name(run), run.fingerprint, pace or Pace())
    _forget_if_ended(cluster, run)


def train(job: Job, run: Run, pace: Pace | None = None) -> list[Point]:
    """Have the training's TrainJob run, and delete it when its model is on the volume."""
    from steps.train.trainjob.cluster import connect

    pace = pace or Pace()
    cluster = connect(job.params, run.bound.namespace)
    if not job.model.is_dir():  # else an attempt was cut off between the model and the record
        _run(cluster, job, run, pace)
    try:
        points = _results(job, pace)
    except StepError:
        _delete(cluster, run, pace)  # the next attempt would find it complete again
        raise
    _delete(cluster, run, pace)
    return points


def _run(cluster: "Cluster", job: Job, run: Run, pace: Pace) -> None:
    from steps.train import instructlab
    from steps.train.trainjob import follow

    limits.tell(job.params)
    job.write(job.file)
    sent = Patience(pace).ask(lambda: _rendered(cluster, job, run), pace.submission)
    started = Started(manifest.name(run), cluster.namespace, cluster.where)
    with progress("training", job.steps, "steps") as shown:

        def show() -> None:
            try:
                last = instructlab.latest(job)
            except OSError as error:  # the next look may find the volume well again
                log.debug("%s", error)
                return
            if last:
                rate = f"{last.tokens_per_second:,.0f}"
                shown.update(last.step, loss=f"{last.loss:.4f}", tokens_per_second=rate)

        try:
            follow.run(
                cluster,
                sent,
                limits=follow.Limits(job.params.memory, manifest.deadline(job.params)),
                bookmark=job.checkpoints / "worker-log.json",
                note=lambda: started.note(run.workspace),
                show=show,
                pace=pace,
            )
        except StepError:
            _forget_if_ended(cluster, run)
            raise


def _rendered(cluster: "Cluster", job: Job, run: Run) -> manifest.Object:
    from steps.train.trainjob import runtimes

    runtime, owner = runtimes.find(cluster, job.params), runtimes.owner(cluster, run)

    def rendered(api: manifest.Api) -> manifest.Object:
        return manifest.render(job, run, api, runtime, owner)

    return rendered(runtimes.shape(cluster, job.params, rendered))


def _results(job: Job, pace: Pace) -> list[Point]:
    """The loss curve, once the volume shows all that was written to it by other nodes."""
    from steps.train import instructlab

    until = time.monotonic() + pace.results
    while True:
        try:
            return instructlab.results(job)
        except StepError as error:
            if error.exit_code != StepError.exit_code or time.monotonic() >= until:
                raise
        time.sleep(pace.first_wait)


def _delete(cluster: "Cluster", run: Run, pace: Pace) -> None:
    """Delete what has ended: nothing else would, and Trainer may run it again."""
    from steps.train.trainjob import objects

    name, patience = manifest.name(run), Patience(pace)
    try:
        job, _ = patience.ask(lambda: objects.find(cluster, name), pace.submission)
        if job is not None:
            patience.ask(lambda: objects.delete(cluster, job), pace.submission)
            log.info("deleted TrainJob %s/%s", cluster.namespace, name)
    except StepError as error:
        log.warning(
            "%s; it has ended, delete it: kubectl delete trainjob %s -n %s",
            error,
            name,
            cluster.namespace,
        )
    files.remove(run.workspace.started)


def _forget_if_ended(cluster: "Cluster", run: Run) -> None:
    """Take the note of the run's TrainJob away where nothing of it can write to the folder any more."""
    from steps.train.trainjob import submit

    try:
        if submit.has_ended(cluster, manifest.name(run)):
            files.remove(run.workspace.started)
    except (StepError, OSError) as error:  # who is refused does not know, and the note stays
        log.debug("%s", error)
