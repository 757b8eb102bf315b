"""The `sft` command."""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import steps
from steps.errors import StepError, Terminated, UsageError, volume_error

_COMMANDS = {
    "run": "run the pipeline on this machine; `sft run --help` lists all parameters",
    "submit": "start a run on Argo Workflows, with the same parameters",
    "list": "the runs on Argo Workflows",
    "watch": "follow a run on Argo Workflows to its end",
    "stop": "stop a run on Argo Workflows",
    "retry": "do again what failed of a run on Argo Workflows",
}
"""A line each; all but `run` are modules of workflows/commands/, imported when called."""

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
    try:
        if command == "run":
            return _run(words[1:])
        if command not in _COMMANDS:
            raise UsageError(f"{command!r} is not a command; see sft --help")
        module = importlib.import_module(f"workflows.commands.{command}")
        code: int = module.main(words[1:])
        return code
    except StepError as error:
        print(f"sft: {error}", file=sys.stderr)  # noqa: T201
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


def _run(argv: Sequence[str]) -> int:
    from steps import flags

    parser = _parser()
    given, problems = flags.parse(parser, argv, list(parser._option_string_actions))
    own = {name: given.pop(name) for name in [*_OWN, "check"] if name in given}

    # Only now, so that --help is instant.
    from steps.workspace import Workspace
    from workflows import parameter_flags
    from workflows.console import Console
    from workflows.local import StepFailedError, run
    from workflows.summary import summary

    workspace = _workspace(own)
    from_file = parameter_flags.from_file(own.get("params"))
    # Flags come last: of one parameter under two names the last one counts.
    parameters = {name: from_file[name] for name in from_file if name not in given} | given
    with Console() as console:
        console.note(f"the run is {workspace}")
        try:
            records = run(
                parameters,
                workspace,
                problems=problems,
                start=own.get("from"),
                cache=Path(own["cache"]) if "cache" in own else None,
                claims=Path(own.get("claims", "/claims")),
                verbosity=own.get("verbosity", "INFO"),
                check_only="check" in own,
                console=console,
            )
        except StepFailedError as error:
            console.error(str(error))
            if Workspace(workspace).log(error.step).exists():
                console.note(f"to go on: sft run --resume {_quoted(workspace)}")
            return error.exit_code
        except (KeyboardInterrupt, Terminated) as stop:
            console.note(f"stopped; to go on: sft run --resume {_quoted(workspace)}")
            return getattr(stop, "exit_code", 130)
        if "check" in own:
            console.note("all checks passed; nothing was started")
            return 0
    console.show(summary(records, Workspace(workspace)))
    return 0


_OWN = {
    "run_name": "Name of the run; its folder is made under --runs. Default: the time.",
    "runs": "Folder of the runs. (default: runs)",
    "resume": "Go on with the run in this folder: only what is not done is done.",
    "from": "Begin at this step; an earlier one runs only if a parameter of its own is given.",
    "params": "Parameters from a YAML file, by any of their names; flags win.",
    "cache": "Folder that runs share, for models and data sets of the hub. (default: ~/.cache/sft-pipeline)",
    "claims": "Folder where claims for pvc:// addresses are mounted. (default: /claims)",
    "verbosity": "Log level of the steps: DEBUG, INFO, WARNING or ERROR. (default: INFO)",
}


def _parser() -> argparse.ArgumentParser:
    from steps import flags
    from workflows import parameter_flags
    from workflows.pipeline import SFT

    parser = flags.Parser(
        prog="sft run",
        usage="sft run --data-uri URI [--model MODEL] [options]",
        description="Run the pipeline on this machine, in a folder of its own.",
        epilog=parameter_flags.EPILOG,
    )
    own = parser.add_argument_group("the run")
    for name, text in _OWN.items():
        own.add_argument(flags.flag(name), dest=name, default=argparse.SUPPRESS, help=text)
    own.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Only check: parameters, credentials, sources, models, registry. Writes nothing.",
    )
    parameter_flags.add(parser, SFT)
    return parser


def _workspace(own: dict[str, Any]) -> Path:
    """The run's folder: an existing one to go on with, or a new one under `--runs`."""
    if "resume" in own:
        folder = Path(own["resume"])
        both = [name for name in ("run_name", "runs") if name in own]
        if both:
            raise UsageError("--resume names the run's folder; leave --run-name and --runs out")
        if not folder.is_dir():
            raise UsageError(f"--resume: {folder} is not there")
        return folder
    name = own.get("run_name") or time.strftime("%Y%m%d-%H%M%S")
    if "/" in name or name in (".", ".."):
        raise UsageError(f"--run-name: {name!r} is not the name of a folder")
    return Path(own.get("runs", "runs")) / name


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(os.fspath(path))


if __name__ == "__main__":
    sys.exit(main())
