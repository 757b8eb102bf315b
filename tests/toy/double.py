"""Double what the first step counted."""

from typing import ClassVar

from steps import entrypoint, files, record
from steps.entrypoint import Run
from steps.errors import DataError, UsageError
from steps.params import Man, StepParams
from steps.record import Asset, Result


class DoubleParams(StepParams):
    """Double a number."""

    step: ClassVar[str] = "double"

    times: Man[int] = 2
    """Multiply by this; the check refuses 0."""


def check(params: DoubleParams, run: Run) -> None:
    if not params.times:
        raise UsageError("--times 0: nothing would be doubled")


def inputs(params: DoubleParams, run: Run) -> dict[str, Asset]:
    counted = record.read(run.workspace, "count")
    if counted is None:
        raise DataError("run the count step first")
    return {"count": counted.outputs["count"]}


def main(params: DoubleParams, run: Run) -> Result:
    number = int((run.workspace.root / "count.txt").read_text()) * params.times
    path = run.workspace.root / "double.txt"
    files.write(path, str(number))
    return Result(outputs={"double": Asset.of(path, run.workspace)}, metrics={"number": number})


if __name__ == "__main__":
    entrypoint.run(main, DoubleParams, inputs=inputs, check=check)
