"""Fine-tune a chat model on the training split: tokens in, tuned model out.

python -m steps.train --workspace runs/demo --model Qwen/Qwen2.5-0.5B-Instruct --epochs 2
"""

import os
from pathlib import Path

from steps import base_model, entrypoint, files, record
from steps.base_model import Examined
from steps.chat_template import ChatTemplate
from steps.entrypoint import Run
from steps.errors import DataError
from steps.record import Asset, Record, Result
from steps.secrets import PULL_SECRET, hf_token, preferred
from steps.tokens import read_template
from steps.train import launcher
from steps.train.params import TrainParams
from steps.train.started import alone
from steps.train.variables import environment


def check(params: TrainParams, run: Run) -> None:
    """The parameters can be served here, and the base model can be trained on chats."""
    launcher.refuse_what_it_cannot_serve(params)
    launcher.choose(params).check(params, run)
    template = Path(params.chat_template) if params.chat_template else None
    if template:
        ChatTemplate(read_template(template)).check()
    base = base_model.check(params.model, run, **_credentials(params))
    if base:
        from steps.train import preflight
        from steps.train.estimate import Shape

        shape = Shape.of(preflight.check(base.folder, template))
        place = launcher.choose(params).place(params)
        preflight.refuse_want_of_memory(shape, params, place)
        preflight.refuse_want_of_room(shape, params, run.workspace)


def dry_run(params: TrainParams, run: Run) -> str:
    """The command or the TrainJob that `main` would start or send; what it will be is told."""
    from steps.train import fine_tune

    launcher.refuse_what_it_cannot_serve(params)
    _data(run)
    base = base_model.check(params.model, run, **_credentials(params))
    if base is None:  # an image shows its tokenizer only once it is in the cache
        path = base_model.resolve(params.model, run, **_credentials(params)).path
        base = Examined(path, path)
    return fine_tune.dry_run(params, run, base)


def inputs(params: TrainParams, run: Run) -> dict[str, Asset]:
    """Both splits, the base model at a fixed revision, and the chat template if one is given."""
    data = _data(run)
    found = {"train": data.outputs["train"], "eval": data.outputs["eval"]}
    found["base_model"] = base_model.pinned(params.model, run, **_credentials(params))
    if params.chat_template:
        path = Path(params.chat_template).absolute()
        read_template(path)  # raises what is wrong with it
        found["chat_template"] = Asset(path=str(path), sha256=files.sha256(path))
    return found


def main(params: TrainParams, run: Run) -> Result:
    """Train on the run's rows and leave the model in the run's folder."""
    # Some variables count only where they are set before torch is loaded.
    os.environ.update(environment(params.env_vars)[0])

    from steps.train.fine_tune import fine_tune

    launcher.refuse_what_it_cannot_serve(params)
    workspace = run.workspace
    with alone(workspace):
        launcher.choose(params).check(params, run)
        trained = fine_tune(params, run)
    return Result(
        outputs={
            "model": Asset.of(workspace.model, workspace),
            "curve": Asset.of(workspace.curve, workspace),
        },
        metrics=trained.metrics,
        details=trained.details,
        versions=record.versions(
            "accelerate", "instructlab-training", "tokenizers", "torch", "transformers"
        ),
        results={
            "model": str(workspace.model),
            "loss-last": f"{trained.metrics['loss_last']:.6g}",
        },
    )


def _data(run: Run) -> Record:
    data = record.read(run.workspace, "dataset")
    if data is None:
        raise DataError(f"{run.workspace.record('dataset')}: not there; run the dataset step first")
    return data


def _credentials(params: TrainParams) -> dict[str, str]:
    return {
        "hf_token": hf_token(params.hf_token),
        "pull_secret": preferred(params.pull_secret, PULL_SECRET, "OCI_PULL_SECRET_MODEL_DOWNLOAD"),
    }


if __name__ == "__main__":
    entrypoint.run(main, TrainParams, inputs=inputs, check=check, dry_run=dry_run)
