"""Run the benchmarks, or those that are named.

python -m benchmarks [dataset] [tokenising] [training]
"""

import sys
import tempfile
from pathlib import Path

from benchmarks import dataset, tokenising, training

ALL = {"dataset": dataset.main, "tokenising": tokenising.main, "training": training.main}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ALL:
            ALL[name](Path(folder))
