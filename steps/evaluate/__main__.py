"""Score the tuned model: the held-out rows, lm-eval tasks, and the base model beside it.

python -m steps.evaluate --workspace runs/demo --tasks arc_easy,hellaswag --limit 200
"""

import os

from steps import base_model, entrypoint, record
from steps.entrypoint import Run
from steps.errors import DataError
from steps.evaluate import data_sets, tasks
from steps.evaluate.params import EvaluateParams
from steps.record import Asset, Result
from steps.secrets import hf_token


def check(params: EvaluateParams, run: Run) -> None:
    """lm-eval knows the tasks, a given model is one, and the tasks' data can be had."""
    tasks.use_cache(run.cache)
    token = _token(params)
    asked = tasks.check(params)
    if params.model:
        found = base_model.check(params.model, run, hf_token=token)
        if found:
            from steps import weights

            weights.outline(found.folder)
    data_sets.check(asked, token)


def inputs(params: EvaluateParams, run: Run) -> dict[str, Asset]:
    """The models, the held-out rows, and the files of tasks.

    A given model is scored alone: nothing says which model it was made from.
    """
    tasks.use_cache(run.cache)
    token = _token(params)
    if params.model:
        source = base_model.resolve(params.model, run, hf_token=token)
        found = {"model": source.asset(run.workspace)}
    else:
        found = _trained(run)
        if params.baseline == "none":
            del found["base_model"]
    return found | _held_out(params, run) | tasks.assets(params.tasks)


def main(params: EvaluateParams, run: Run) -> Result:
    """Score the models and leave what was found in evaluation/."""
    from steps.evaluate.evaluation import evaluate

    return evaluate(params, run)


def _token(params: EvaluateParams) -> str:
    """The token for the hub, left also where the data sets of tasks look for it."""
    token = hf_token(params.hf_token)
    if token:
        os.environ["HF_TOKEN"] = token
    return token


def _trained(run: Run) -> dict[str, Asset]:
    workspace = run.workspace
    trained = record.read(workspace, "train")
    if trained is None:
        raise DataError(
            f"{workspace.record('train')}: not there; run the train step first, or name another "
            "model (phase_03_eval_opt_model)"
        )
    found = {"model": trained.outputs["model"], "base_model": trained.inputs["base_model"]}
    for asset in found.values():
        path = workspace.locate(asset.path or "")
        if not (path / "config.json").exists():
            raise DataError(f"{path}: the model is not there any more; run the train step again")
    return found


def _held_out(params: EvaluateParams, run: Run) -> dict[str, Asset]:
    """The held-out rows; none where a given model is scored on tasks without any run."""
    workspace = run.workspace
    if not workspace.eval_rows.exists():
        if params.model:
            return {}
        raise DataError(f"{workspace.eval_rows}: not there; run the dataset step first")
    data = record.read(workspace, "dataset")
    if data is None:
        return {"eval": Asset.of(workspace.eval_rows, workspace)}
    return {"eval": data.outputs["eval"]}


if __name__ == "__main__":
    entrypoint.run(main, EvaluateParams, inputs=inputs, check=check)
