"""The ClusterTrainingRuntime that this project's TrainJobs refer to, made for its train image."""

from typing import Any

from workflows import security
from workflows.objects import kubernetes_object
from workflows.pipeline import SFT
from workflows.settings import Settings

NAME = "sft-training"
_GRACE_SECONDS = 600
"""For a checkpoint when the pods are told to go."""


def runtime(settings: Settings) -> dict[str, Any]:
    """Pods that train once: the first that fails ends all of them, and the train step decides.

    Trainer's own runtimes restart a failed pod in place, up to six times, while the others wait for
    it in a collective operation that it cannot join again. There is no time to live: what it would
    remove, Trainer would run again.
    """
    job = {
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": _GRACE_SECONDS,
                "automountServiceAccountToken": False,
                # TrainJobs of Trainer 2.1 cannot say so themselves.
                "securityContext": security.pod(settings),
                "containers": [
                    {
                        "name": "node",
                        "image": settings.images.reference(SFT.step("train").image),
                        "imagePullPolicy": settings.images.pull_policy,
                        "securityContext": security.CONTAINER,
                    }
                ],
            }
        },
    }
    made = kubernetes_object(
        "ClusterTrainingRuntime",
        NAME,
        settings,
        version="trainer.kubeflow.org/v1alpha1",
        cluster_scoped=True,
        spec={
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {
                "spec": {
                    "failurePolicy": {"maxRestarts": 0},
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {
                                "metadata": {
                                    "labels": {
                                        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
                                    }
                                },
                                "spec": job,
                            },
                        }
                    ],
                }
            },
        },
    )
    made["metadata"]["labels"]["trainer.kubeflow.org/framework"] = "torch"
    return made
