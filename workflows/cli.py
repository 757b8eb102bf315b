"""The `sft` command: finds the command's module and tells its errors."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

import steps
from steps.errors import StepError, UsageError, volume_error

_COMMANDS = {
    "run": "run the pipeline on this machine; `sft run --help` lists all parameters",
    "render": "write the manifests for a cluster with Argo Workflows",
    "submit": "start a run on Argo Workflows, with the same parameters",
    "list": "the runs on Argo Workflows",
    "watch": "follow a run on Argo Workflows to its end",
    "stop": "stop a run on Argo Workflows",
    "retry": "do again what failed of a run on Argo Workflows",
}
"""A line each; they are modules of workflows/commands/, imported when called."""

_HELP = f"""\
usage: sft <command> [options]

Supervised fine-tuning of a language model: data set, training, evaluation, registration.

commands:
{"".join(f"  {name:8} {line}{chr(10)}" for name, line in _COMMANDS.items())}
options:
  -h, --help     show this help message and exit
  --version      show the version and exit
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (sysexits.h; a step's own where one failed)."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(_HELP, end="")  # noqa: T201
        return 0
    if command == "--version":
        print(f"sft-pipeline {steps.__version__}")  # noqa: T201
        return 0
    if command not in _COMMANDS:
        known_ones = ", ".join(_COMMANDS)
        print(f"sft: {command!r} is not a command; there are: {known_ones}", file=sys.stderr)  # noqa: T201
        return UsageError.exit_code
    try:
        _start_fast()
        module = importlib.import_module(f"workflows.commands.{command}")
        code: int = module.main(words[1:])
        return code
    except StepError as error:
        hint = f"\n  see sft {command} --help" if isinstance(error, UsageError) else ""
        print(f"sft: {error}{hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("sft: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except OSError as error:
        known = volume_error(error)
        if known is None:
            raise
        print(f"sft: {known}", file=sys.stderr)  # noqa: T201
        return known.exit_code


def script() -> None:
    """The command: `main`, and its exit code."""
    code = main()
    if "hera" in sys.modules:
        # To take its thousand classes apart one by one at the end is a seventh of `sft render`.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _start_fast() -> None:
    """Nearly all that imports make stays to the end: to look for what could be freed is in vain."""
    gc.freeze()
    gc.set_threshold(50_000)
    # Its search for plugins reads the metadata of every package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Where lm-eval has brought chardet, requests takes it, and its tables are a tenth of `sft render`;
    # without it, requests goes by charset_normalizer.
    sys.modules.setdefault("chardet", None)  # type: ignore[arg-type]


if __name__ == "__main__":
    script()
