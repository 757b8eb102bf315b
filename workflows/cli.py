"""The `sft` command."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import steps
from steps.errors import StepError, Terminated, UsageError, volume_error

_HELP = """\
usage: sft <command> [options]

Supervised fine-tuning of a language model: data set, training, evaluation, registration.

commands:
  run      run the pipeline on this machine; `sft run --help` lists all parameters

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
        if command != "run":
            raise UsageError(f"{command!r} is not a command; there is: sft run")
        return _run(words[1:])
    except StepError as error:
        hint = "\n  see sft run --help" if isinstance(error, UsageError) else ""
        print(f"sft: {error}{hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
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
    from workflows import values
    from workflows.console import Console
    from workflows.local import StepFailedError, run
    from workflows.pipeline import SFT
    from workflows.summary import summary

    workspace = _workspace(own)
    parameters, wrong = values.by_name(SFT, given)
    if "params" in own:
        kept, wrong_in_file = values.by_name(SFT, values.from_file(Path(own["params"])))
        wrong += [f"--params {own['params']}: {problem}" for problem in wrong_in_file]
        parameters = kept | parameters
    with Console() as console:
        try:
            records = run(
                parameters,
                workspace,
                problems=[*problems, *wrong],
                start=own.get("from"),
                cache=Path(own["cache"]) if "cache" in own else None,
                claims=Path(own.get("claims", "/claims")),
                verbosity=own.get("verbosity", "INFO"),
                check_only="check" in own,
                console=console,
            )
        except StepFailedError as error:
            console.error(str(error))
            if console.has_started:
                console.note(f"to go on: sft run --resume {_quoted(workspace)}")
            return error.exit_code
        except (KeyboardInterrupt, Terminated) as stop:
            if console.has_started:
                console.note(f"stopped; to go on: sft run --resume {_quoted(workspace)}")
            else:
                console.note("stopped; nothing was started")
            return getattr(stop, "exit_code", 130)
        if "check" in own:
            console.note("all checks passed; nothing was started")
            return 0
    console.show(summary(records, Workspace(workspace)))
    return 0


_OWN = {
    "run_name": ("NAME", "Name of the run; its folder is made under --runs. Default: the time."),
    "runs": ("DIR", "Folder of the runs. (default: runs)"),
    "resume": ("DIR", "Go on with the run in this folder: only what is not done is done."),
    "from": (
        "STEP",
        "Begin at dataset, train, evaluate or register; an earlier step runs only if a parameter "
        "of its own is given.",
    ),
    "params": ("FILE", "Parameters from a YAML file, by any of their names; flags win."),
    "cache": (
        "DIR",
        "Folder that runs share, for models and data sets of the hub. "
        "(default: ~/.cache/sft-pipeline)",
    ),
    "claims": (
        "DIR",
        "Folder where claims for pvc:// addresses are mounted. (default: /claims)",
    ),
    "verbosity": ("DEBUG|INFO|WARNING|ERROR", "Log level of the steps. (default: INFO)"),
}
"""The command's own flags: what stands for the value, and the help."""


def _parser() -> argparse.ArgumentParser:
    from steps import flags
    from steps.params import is_secret
    from workflows import values
    from workflows.pipeline import SFT

    parser = flags.Parser(
        prog="sft run",
        usage="sft run --data-uri URI [--model MODEL] [options]",
        description="Run the pipeline on this machine, in a folder of its own.",
        epilog="A parameter of the form --<step>-<field> has the short form --<field> where no "
        "other step has it.",
    )
    own = parser.add_argument_group("the run")
    for name, (value, text) in _OWN.items():
        own.add_argument(
            flags.flag(name), dest=name, metavar=value, default=argparse.SUPPRESS, help=text
        )
    own.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Only check: parameters, credentials, sources, models, registry. Writes nothing.",
    )
    shared = values.shared_secrets(SFT)
    groups = {
        step.name: parser.add_argument_group(step.name, step.params.__doc__) for step in SFT.steps
    }
    for names in values.names(SFT):
        parameter = names.parameter
        spellings = [names.short, names.long] if names.short else [names.long]
        flags.add(
            groups[parameter.step.name],
            parameter.name,
            parameter.field,
            *(flags.flag(spelling) for spelling in spellings),
        )
    secret = parser.add_argument_group("secrets of several steps")
    for field, parameters in shared.items():
        assert is_secret(parameters[0].field)
        flags.add(secret, field, parameters[0].field)
    return parser


def _workspace(own: dict[str, Any]) -> Path:
    """The run's folder: an existing one to go on with, or a new one under `--runs`."""
    if "resume" in own:
        folder = Path(own["resume"])
        both = [name for name in ("run_name", "runs") if name in own]
        if both:
            raise UsageError("--resume names the run's folder; leave --run-name and --runs out")
        if not (folder / "params.yaml").is_file():
            raise UsageError(
                f"--resume: {folder} is not the folder of a run: it has no params.yaml"
            )
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
