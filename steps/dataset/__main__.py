"""Fetch a chat data set, check every row, and split it for training and evaluation.

python -m steps.dataset --workspace runs/demo --data-uri hf://HuggingFaceTB/smoltalk:everyday-conversations
"""

from steps import entrypoint
from steps.dataset import sources
from steps.dataset.params import DatasetParams
from steps.entrypoint import Run
from steps.record import Asset, Result


def check(params: DatasetParams, run: Run) -> None:
    """The sources answer, and what lies here already begins with rows that can be learnt from."""
    from steps.dataset import prepare

    for opened in sources.open_sources(params, run).values():
        here = opened.source.check()
        if params.on_invalid == "error":
            prepare.refuse_bad_beginnings(here, params.chat_schema)


def inputs(params: DatasetParams, run: Run) -> dict[str, Asset]:
    """The sources, as far as that is known without a network."""
    opened = sources.open_sources(params, run)
    return {name: one.source.asset() for name, one in opened.items()}


def main(params: DatasetParams, run: Run) -> Result:
    """Fetch the rows, check them all, and leave both splits in the run's folder."""
    from steps.dataset import prepare

    return prepare.prepare(params, run)


if __name__ == "__main__":
    entrypoint.run(main, DatasetParams, inputs=inputs, check=check)
