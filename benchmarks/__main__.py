"""Run the benchmarks, or those that are named.

python -m benchmarks [tokenising] [training]
"""

import sys
import tempfile
from pathlib import Path

from benchmarks import tokenising, training

ALL = {"tokenising": tokenising.main, "training": training.main}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ALL:
            ALL[name](Path(folder))
