"""Take the parameters of a real step, by its own command line, and leave nothing but its record.

python -m tests.toy.keep train --workspace=/volume/runs/one --epochs=2
"""

import sys
from typing import Any

from steps import entrypoint
from steps.record import Result
from workflows import SFT


def _nothing(params: Any, run: Any) -> Any:
    return {}


if __name__ == "__main__":
    entrypoint.run(
        lambda params, run: Result(),
        SFT.step(sys.argv[1]).params,
        inputs=_nothing,
        check=_nothing,
        argv=sys.argv[2:],
    )
