"""`sft run`: the pipeline on this machine."""

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import flags
from steps.errors import Terminated, UsageError
from workflows import parameter_flags, values
from workflows.pipeline import SFT

if TYPE_CHECKING:
    from workflows.console import Console


def main(argv: Sequence[str]) -> int:
    """Run the pipeline in a folder and return the exit code, that of a failed step where one failed."""
    parser = _parser()
    given, problems = flags.parse(parser, argv, list(parser._option_string_actions))
    own = {name: given.pop(name) for name in [*_OWN, "parameter", "check"] if name in given}

    # Only now, so that --help is instant.
    from steps.report.summary import summary
    from steps.workspace import Workspace
    from workflows.console import Console
    from workflows.local import StepFailedError, run

    workspace = _workspace(own)
    pairs, faults = parameter_flags.pairs(own.get("parameter", []))
    parameters, wrong = values.by_name(SFT, given)
    named, wrong_in_pairs = values.by_name(SFT, pairs)
    wrong += faults + [f"-p: {problem}" for problem in wrong_in_pairs]
    parameters = named | parameters
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
                console.note(f"to go on: {_go_on(workspace, own, console)}")
            return error.exit_code
        except (KeyboardInterrupt, Terminated) as stop:
            if console.has_started:
                console.note(f"stopped; to go on: {_go_on(workspace, own, console)}")
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
    "params": ("FILE", "Parameters from a YAML file, by any of their names; -p and flags win."),
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


_LONGEST_NAME = 255
"""Bytes of a file's name, on all common file systems."""


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="sft run",
        usage="sft run --data-uri URI [--model MODEL] [options]",
        description="Run the pipeline on this machine, in a folder of its own.",
        epilog=parameter_flags.EPILOG,
    )
    own = parser.add_argument_group("the run")
    flags.add_own(own, _OWN)
    parameter_flags.add_pairs(own)
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
        if not (folder / "params.yaml").is_file():
            raise UsageError(
                f"--resume: {folder} is not the folder of a run: it has no params.yaml"
            )
        return folder
    name = own.get("run_name") or time.strftime("%Y%m%d-%H%M%S")
    if "/" in name or name in (".", "..") or len(os.fsencode(name)) > _LONGEST_NAME:
        raise UsageError(f"--run-name: {name!r} is not the name of a folder")
    folder = Path(own.get("runs", "runs")) / name
    if (folder / "params.yaml").exists():
        raise UsageError(
            f"{folder} holds a run already: go on with it by --resume {shlex.quote(str(folder))}, "
            "or choose another --run-name"
        )
    return folder


def _go_on(workspace: Path, own: dict[str, Any], console: "Console") -> str:
    """The command that goes on with the run; what was not kept stands there to be filled in."""
    words = ["sft", "run", "--resume", os.fspath(workspace)]
    words += ["--from", own["from"]] if "from" in own else []
    return " ".join([shlex.join(words), *(f"{flag} ..." for flag in console.not_kept)])
