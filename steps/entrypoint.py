"""What every step's command does around its work: flags, logs, the record, errors and exit codes."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from steps import addresses, files, flags, logs, record
from steps.errors import StepError, Terminated, UsageError, volume_error
from steps.params import Bound, StepParams, is_secret, may_hold_secret, shown
from steps.record import Asset, Record, Result
from steps.workspace import Workspace

log = logging.getLogger(__name__)

P = TypeVar("P", bound=StepParams)

PARENT = "SFT_PARENT"
"""Environment variable: the process that this one shall not outlive."""


@dataclass(frozen=True)
class Run:
    """The run that a step works for: where things lie, and what the engine said of it."""

    bound: Bound
    inputs: dict[str, Asset] = field(default_factory=dict)
    """What the step's `inputs` found; there when its `main` starts."""
    fingerprint: str = ""
    """Of the result that `main` shall make: marks what a stopped attempt has left."""

    @property
    def workspace(self) -> Workspace:
        """The run's folder."""
        return Workspace(self.bound.workspace.absolute())

    @property
    def cache(self) -> Path:
        """Folder shared between runs."""
        return (self.bound.cache or self.bound.workspace / "cache").absolute()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.bound.run_name or self.workspace.root.name


def run(
    main: Callable[[P, Run], Result],
    params: type[P],
    *,
    inputs: Callable[[P, Run], dict[str, Asset]],
    check: Callable[[P, Run], None],
    dry_run: Callable[[P, Run], str] | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a step's command and leave with its exit code.

    `inputs` names what the step will read, which decides with the parameters whether the step is
    done already; `check` does what can be known without the work; `main` does the work. A step with
    a `dry_run` has that flag too: what it returns goes to standard output.
    """
    if parent := os.environ.pop(PARENT, ""):
        from steps.signals import end_with_parent

        end_with_parent(int(parent))
    set_up_libraries()
    share_cores()
    arguments = sys.argv[1:] if argv is None else argv
    logs.set_up(params.step, "INFO")
    debug = "--verbosity=DEBUG" in arguments or "DEBUG" in arguments
    try:
        values, bound, mode = _parse(params, arguments, dry_run is not None)
        logs.set_up(params.step, bound.verbosity)
        debug = bound.verbosity == "DEBUG"
        _hide_secrets(values)
        signal.signal(signal.SIGTERM, _terminate)
        step_run = Run(bound)
        if mode == "check":
            check(values, step_run)
            log.info("check passed")
        elif mode == "dry_run" and dry_run is not None:
            sys.stdout.write(dry_run(values, step_run))
        else:
            _work(main, inputs, values, step_run)
    except StepError as error:
        _fail(error, error.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command to go on", 130, debug=False)
    except Terminated:
        _fail("terminated; run the same command to go on", Terminated.exit_code, debug=False)
    except Exception as error:
        known = volume_error(error)
        if known is not None:
            _fail(known, known.exit_code, debug)
        log.critical("this is a bug: %s", "".join(traceback.format_exception(error)).rstrip())
        sys.exit(1)
    sys.exit(0)


def _parse(
    params: type[P], argv: Sequence[str], has_dry_run: bool
) -> tuple[P, Bound, Literal["check", "dry_run", ""]]:
    parser = flags.step_parser(params, Bound, f"python -m steps.{params.step}", has_dry_run)
    fields = {**Bound.model_fields, **params.model_fields}
    secret = {name for name, field in params.model_fields.items() if is_secret(field)}
    given, problems = flags.parse(parser, argv, [flags.flag(name) for name in fields])
    problems = [
        f"{problem}: a secret's flag would stand in the process list; set {flags.variable(name)}"
        if (name := problem.split(" ")[0].lstrip("-").replace("-", "_")) in secret
        else problem
        for problem in problems
    ]
    checking, dry = given.pop("check"), given.pop("dry_run", False)
    carried = {
        name: os.environ[flags.variable(name)]
        for name, field in params.model_fields.items()
        if may_hold_secret(field) and flags.variable(name) in os.environ
    }
    given = carried | given
    values, wrong = flags.validate(
        params, {name: value for name, value in given.items() if name in params.model_fields}
    )
    bound, wrong_bound = flags.validate(
        Bound, {name: value for name, value in given.items() if name in Bound.model_fields}
    )
    problems += wrong + [problem for problem in wrong_bound if problem not in wrong]
    if problems or values is None or bound is None:
        raise UsageError("\n  ".join([*problems, f"see python -m steps.{params.step} --help"]))
    return values, bound, "check" if checking else "dry_run" if dry else ""


def _work(
    main: Callable[[P, Run], Result],
    inputs: Callable[[P, Run], dict[str, Asset]],
    params: P,
    run: Run,
) -> None:
    workspace = run.workspace
    workspace.root.mkdir(parents=True, exist_ok=True)
    logs.add_file(params.step, workspace.log(params.step))
    log.info("parameters: %s", _chosen(params))
    started = record.now()
    found = inputs(params, run)
    fingerprint = record.fingerprint(params, found)
    done = record.read(workspace, params.step)
    if done and done.fingerprint == fingerprint and record.is_whole(done, workspace):
        log.info("already done at %s with these parameters and inputs", f"{done.finished:%F %T}")
    else:
        workspace.discard(params.step)
        result = main(params, replace(run, inputs=found, fingerprint=fingerprint))
        finished = record.now()
        done = Record(
            step=params.step,
            status="skipped" if result.skipped else "done",
            reason=result.skipped,
            fingerprint=fingerprint,
            started=started,
            finished=finished,
            seconds=round((finished - started).total_seconds(), 3),
            parameters=shown(params),
            inputs=found,
            outputs=result.outputs,
            metrics=record.numbers(result.metrics),
            versions=result.versions,
            details=result.details,
            results=result.results,
        )
        done.write(workspace)
        if done.reason:
            log.info("skipped: %s", done.reason)
        else:
            log.info("done in %.1f s", done.seconds)
    if run.bound.outputs:
        for name, value in done.results.items():
            files.write(run.bound.outputs / name, value)

    from steps import report  # its imports would slow every --help

    report.write(workspace)


def _chosen(params: StepParams) -> str:
    """The values that are not their defaults; the record will hold all."""
    fields = type(params).model_fields
    texts = {
        name: flags.as_text(value)
        for name, value in shown(params).items()
        if getattr(params, name) != fields[name].get_default(call_default_factory=True)
    }
    listed = [
        f"{name}={text!r}" if not text or " " in text else f"{name}={text}"
        for name, text in texts.items()
    ]
    return ", ".join([*listed, "the rest at their defaults"])


def _hide_secrets(params: StepParams) -> None:
    for secret in params.secrets:
        for key in secret.hidden:
            logs.hide(os.environ.get(key, "").strip())
    for name, declared in type(params).model_fields.items():
        value = getattr(params, name)
        if is_secret(declared):
            logs.hide(value.get_secret_value().strip())
        elif isinstance(value, str):
            for uri, _ in addresses.split(value):
                for text in logs.uri_secrets(uri):
                    logs.hide(text)


def _fail(error: object, code: int, debug: bool) -> NoReturn:
    log.error("%s", error, exc_info=debug)
    sys.exit(code)


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise Terminated


def set_up_libraries() -> None:
    """Bars and notices of libraries would break the lines; the steps tell what matters."""
    for name, value in {
        # Its search for plugins reads the metadata of every package: a fifth of a short command.
        "PYDANTIC_DISABLE_PLUGINS": "__all__",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Its warnings, of attempts that it repeats, go past our log, with signed links in them.
        "HF_HUB_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)


def share_cores() -> None:
    """Threads of a computation wait for one another asleep, not spinning.

    On cores that other work shares, a spinning thread keeps the one that it waits for from running:
    training of small models is ten times slower then, by measurement. OpenMP reads it as torch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
