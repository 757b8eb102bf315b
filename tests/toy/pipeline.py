"""A pipeline of two small steps, real ones by their commands, to see what an engine does with them."""

from tests.toy.count import CountParams
from tests.toy.double import DoubleParams
from workflows import Pipeline, Step

TOY = Pipeline(
    name="toy",
    description="Counts, then doubles.",
    steps=(
        Step(
            params=CountParams,
            phase="phase_01_count",
            image="toy",
            module="tests.toy.count",
            template="count",
            results={"number": "0"},
        ),
        Step(
            params=DoubleParams,
            phase="phase_02_double",
            image="toy",
            module="tests.toy.double",
            template="double",
            needs=("count",),
        ),
    ),
)
