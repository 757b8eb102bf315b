"""Fetch a chat data set, check every row, and split it for training and evaluation.

python -m steps.dataset --workspace runs/demo --data-uri hf://HuggingFaceTB/smoltalk:everyday-conversations
"""

from steps import entrypoint
from steps.dataset import sources
from steps.dataset.params import DatasetParams
from steps.entrypoint import Run
from steps.record import Asset, Result


def check(params: DatasetParams, run: Run) -> None:
    """The source answers, and what lies here already begins with rows that can be learnt from."""
    from steps.dataset import prepare

    here = sources.open_source(params, run).check()
    if params.on_invalid == "error":
        prepare.refuse_bad_beginnings(here)


def inputs(params: DatasetParams, run: Run) -> dict[str, Asset]:
    """The source, as far as that is known without a network."""
    return {"source": sources.open_source(params, run).asset()}


def main(params: DatasetParams, run: Run) -> Result:
    """Fetch the rows, check them all, and leave both splits in the run's folder."""
    from steps.dataset import prepare

    return prepare.prepare(params, run)


if __name__ == "__main__":
    entrypoint.run(main, DatasetParams, inputs=inputs, check=check)
