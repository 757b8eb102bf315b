"""The pipeline on this machine: each step the same command as in its container, as a process.

A run is a folder. Every step decides from its record whether it is done, so running the same
folder again does only what is missing.
"""

import contextlib
import fcntl
import glob
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from steps import addresses, files, flags, record
from steps.entrypoint import PARENT
from steps.errors import StepError, Terminated, TransientError, UsageError
from steps.logs import redact
from steps.params import ADDRESS, PLACE, Bound, StepParams, is_secret, marked, shown, withheld
from steps.record import Record
from steps.workspace import Workspace
from workflows import values
from workflows.console import Console
from workflows.pipeline import SFT, Pipeline, Step

Verbosity = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_SECONDS_TO_STOP = 60
_SECONDS_TO_DRAIN = 5
"""For the last lines of a step that has ended, should a process that left its group hold the pipe."""
_ASIDES_SHOWN = 20
_TOLD = {64, 65, 74, 75, 77, 78, 130, 143}
"""Exit codes whose reason the step has told in a line of its own."""
_LINE = re.compile(r"^\S+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w-]+: (.*)$")


class StepFailedError(StepError):
    """A step ended with another exit code than 0; that code is the run's."""

    def __init__(self, step: str, code: int, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.exit_code = code


@dataclass(frozen=True)
class _Options:
    pipeline: Pipeline
    start: str | None
    bound: Bound


def default_cache() -> Path:
    """The user's cache folder (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sft-pipeline"


def run(
    parameters: Mapping[str, Any],
    workspace: Path,
    *,
    pipeline: Pipeline = SFT,
    start: str | None = None,
    cache: Path | None = None,
    claims: Path = Path("/claims"),
    verbosity: Verbosity = "INFO",
    check_only: bool = False,
    console: Console | None = None,
    problems: Sequence[str] = (),
) -> dict[str, Record]:
    """Run the pipeline in a folder of this machine and return each step's record.

    Args:
        parameters: Values by name. A parameter goes by its workflow name
            (`phase_02_train_man_epochs`), by step and field (`train_epochs`), or by the field
            alone where that is clear (`epochs`).
        workspace: Folder of the run. One that holds a run already is gone on with: its parameters
            hold unless given anew, and only what is not done is done. A value that may hold a secret
            is not kept and has to be given anew.
        pipeline: The DAG.
        start: Begin at this step; an earlier one runs only if a parameter of its own is given.
        cache: Folder that runs share, for base models and data sets of the hub; default
            `~/.cache/sft-pipeline`.
        claims: Folder where claims for pvc:// addresses are mounted.
        verbosity: Log level of the steps.
        check_only: Only check, and write nothing.
        console: Where to show what happens; nothing is shown by default.
        problems: What the caller found wrong with the parameters already; told with the rest.

    Raises:
        UsageError: Unknown or ill-typed parameters, all of them in one message.
        StepFailedError: A check or a step failed; `exit_code` is the step's.
    """
    console = console or Console(quiet=True)
    bound = _bound(workspace, cache or default_cache(), claims, verbosity)
    options = _Options(pipeline, start, bound)
    folder = Workspace(bound.workspace)
    chosen = _parameters(parameters, options, folder, problems)
    with _terminable():
        if check_only:
            _check(chosen, options, folder, console)
            return {}
        _check(chosen, options, folder, console)
        console.note(f"the run is {workspace}")
        with _locked(folder, console) as lock:
            _keep_parameters(chosen, options, folder, console)
            _Engine(chosen, options, folder, console, lock).run()
    found = {name: record.read(folder, name) for name in chosen}
    return {name: done for name, done in found.items() if done}


def _bound(workspace: Path, cache: Path, claims: Path, verbosity: Verbosity) -> Bound:
    """What the steps are told of the run; UsageError where it cannot be."""
    given = {
        "workspace": workspace.absolute(),
        "cache": cache.absolute(),
        "claims": claims,
        "verbosity": verbosity,
        "run_name": workspace.absolute().name,
    }
    bound, problems = flags.validate(Bound, given, {"workspace": "the run's folder"})
    values.refuse(problems)
    assert bound is not None
    return bound


def _parameters(
    given: Mapping[str, Any], options: _Options, workspace: Workspace, known: Sequence[str]
) -> dict[str, StepParams]:
    """The models of the steps that are to run."""
    kept = values.from_file(_parameters_file(workspace), missing_ok=True)
    assigned, problems = values.assign(options.pipeline, kept, given)
    own, _ = values.assign(options.pipeline, given)
    order = [step.name for step in options.pipeline.steps]
    if options.start is not None and options.start not in order:
        problems.append(f"--from: there is no step {options.start!r}; steps: {', '.join(order)}")
    first = order.index(options.start) if options.start in order else 0
    # A secret may be meant for all steps, so it asks for none of them.
    asked = {
        name
        for name, given_values in own.items()
        for field in given_values
        if not is_secret(options.pipeline.step(name).params.model_fields[field])
    }
    wanted = [name for index, name in enumerate(order) if index >= first or name in asked]
    models, wrong = values.build(options.pipeline, assigned, wanted)
    models = {name: _with_whole_paths(model) for name, model in models.items()}
    wrong += [
        f"{names.flag} needs a cluster: leave it at its default here"
        for names in values.of_clusters(options.pipeline, models)
    ]
    wrong += options.pipeline.refusals(
        {name: models.get(name) for name in wanted}, _left(options, wanted, workspace)
    )
    values.refuse([*known, *problems, *wrong])
    return models


def _with_whole_paths(params: StepParams) -> StepParams:
    """The same with paths that do not depend on where the user stands when the run is gone on with."""
    whole: dict[str, Any] = {}
    for name in params.model_fields_set:
        field, value = type(params).model_fields[name], getattr(params, name)
        if not marked(field, PLACE):
            continue
        if marked(field, ADDRESS):
            whole[name] = "".join(_whole_address(part) for part in addresses.parts(value.strip()))
        elif isinstance(value, list):
            # In a list of names a path is what has a suffix: a folder may be named like a task.
            whole[name] = [_whole(item) if Path(item).suffix else item for item in value]
        else:
            whole[name] = _whole(value)
    return params.model_copy(update=whole)


def _whole(text: str) -> str:
    """An absolute path, where the text is the path, or the pattern of paths, of what is there."""
    path = files.from_here(text)
    is_here = path.exists() or any(glob.iglob(str(path), recursive=True))  # noqa: PTH207
    return str(path) if text and is_here else text


def _whole_address(part: str) -> str:
    """The same of an address, its weight in front of it; the white space between two is left as it is."""
    if not part.strip():
        return part
    uri = addresses.split(part)[0].uri
    return part.removesuffix(uri) + (uri if "://" in uri else _whole(uri))


def _left(options: _Options, chosen: Collection[str], workspace: Workspace) -> dict[str, Record]:
    """The records of the steps that are left out."""
    others = [step.name for step in options.pipeline.steps if step.name not in chosen]
    found = {name: record.read(workspace, name) for name in others}
    return {name: done for name, done in found.items() if done}


def _parameters_file(workspace: Workspace) -> Path:
    return workspace.root / "params.yaml"


def _keep_parameters(
    chosen: Mapping[str, StepParams], options: _Options, workspace: Workspace, console: Console
) -> None:
    """Write what was set, so that a resumed run has it.

    Of a value that may hold a secret the name alone is kept, so that going on without it is refused.
    Secrets leave no trace: a step that needs one looks for it in the environment too.
    """
    path = _parameters_file(workspace)
    kept = values.from_file(path, missing_ok=True)
    lost = []
    for names in values.names(options.pipeline):
        parameter = names.parameter
        model = chosen.get(parameter.step.name)
        field = parameter.field_name
        if model is None or field not in model.model_fields_set or is_secret(parameter.field):
            continue
        kept[parameter.name] = model.model_dump(mode="json")[field]
        if field in withheld(model):
            kept[parameter.name] = None
            lost.append(names.flag)
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    console.not_kept = lost
    if lost:
        text = f"# null: not kept, since it may hold a secret\n{text}"
        console.note(
            f"{' and '.join(lost)} may hold a secret and is not kept with the run: "
            "to go on later, give it again"
        )
    files.write(path, text)


def _check(
    chosen: Mapping[str, StepParams], options: _Options, workspace: Workspace, console: Console
) -> None:
    """Run all steps' checks, side by side; raise StepFailedError with all that they found."""
    todo = []
    for name, params in chosen.items():
        done = record.read(workspace, name)
        if done is None or done.parameters != shown(params):
            todo.append(name)
    if not todo:
        return
    console.note(f"checking {', '.join(todo)}")
    lines: _Lines = queue.Queue()
    running: dict[str, _Process] = {}
    told: dict[str, list[tuple[str | None, str]]] = {name: [] for name in todo}
    codes: dict[str, int] = {}
    try:
        for name in todo:
            command = [*_command(options.pipeline.step(name), chosen[name], options), "--check"]
            running[name] = _Process(name, command, _environment(chosen[name]), lines)
        while running:
            name, line = lines.get()
            if line is not None:
                told[name].append(_told(line))
                continue
            codes[name] = running.pop(name).end()
    except BaseException:
        _stop(running.values())
        raise
    # Mistakes first: where there is one, to wait and try again is no help.
    failed = sorted((name for name in todo if codes[name]), key=lambda name: _rank(codes[name]))
    for name in [*failed, *(name for name in todo if not codes[name])]:
        for level, text in told[name]:
            if level in ("WARNING", "ERROR", "CRITICAL") or codes[name]:
                console.line(name, level, text)
    if failed:
        raise StepFailedError(
            failed[0],
            codes[failed[0]],
            f"the check of {', '.join(failed)} failed; nothing was started",
        )


def _rank(code: int) -> int:
    """Where a failed check comes among others: a mistake of use first, what may pass last."""
    return {UsageError.exit_code: 0, TransientError.exit_code: 2}.get(code, 1)


class _Engine:
    """Starts each step when those it needs are done, and follows it to its end."""

    def __init__(
        self,
        chosen: Mapping[str, StepParams],
        options: _Options,
        workspace: Workspace,
        console: Console,
        lock: int,
    ) -> None:
        self._chosen, self._options, self._workspace = chosen, options, workspace
        self._console, self._lock = console, lock
        self._waiting = [step for step in options.pipeline.steps if step.name in chosen]
        self._running: dict[str, _Process] = {}
        self._done = _left(options, chosen, workspace)
        self._lines: _Lines = queue.Queue()
        self._asides: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_ASIDES_SHOWN))

    def run(self) -> None:
        """Run all; raise StepFailedError at the first step that fails, once the others have stopped.

        Raises UsageError where what a step has found leaves a later one nothing to do.
        """
        try:
            self._start_ready()
            while self._running:
                self._turn()
        except BaseException:
            _stop(self._running.values())
            self._tell_the_rest()
            raise

    def _start_ready(self) -> None:
        open_steps = {step.name for step in self._waiting} | set(self._running)
        for step in list(self._waiting):
            if not open_steps & set(step.needs):
                self._waiting.remove(step)
                self._running[step.name] = _Process(
                    step.name,
                    _command(step, self._chosen[step.name], self._options),
                    _environment(self._chosen[step.name]),
                    self._lines,
                    self._lock,
                )
                self._console.started(step.name)

    def _turn(self) -> None:
        for name, process in self._running.items():
            self._console.progress(name, process.progress())
        try:
            name, line = self._lines.get(timeout=0.2)
        except queue.Empty:
            return
        if line is not None:
            self._tell(name, line)
            return
        code = self._running.pop(name).end()
        if code:
            if code not in _TOLD:
                for text in self._asides[name]:
                    self._console.line(name, None, text)
            log = self._workspace.log(name)
            raise StepFailedError(
                name, code, f"{name} failed with exit code {code}; its log is {log}"
            )
        self._console.finished(name)
        if done := record.read(self._workspace, name):
            self._done[name] = done
        values.refuse(self._options.pipeline.refusals(self._chosen, self._done))
        self._start_ready()

    def _tell(self, name: str, line: str) -> None:
        level, text = _told(line)
        if level is None:
            # Not from a step's logger, so not in its log yet: a library's print, a crash's trace.
            path = self._workspace.log(name)
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as log:
                log.write(redact(line) + "\n")
            self._asides[name].append(text)
            if self._options.bound.verbosity != "DEBUG":
                return
        self._console.line(name, level, text)

    def _tell_the_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                name, line = self._lines.get_nowait()
                if line is not None:
                    self._tell(name, line)


_Lines = queue.Queue[tuple[str, str | None]]
"""Lines of several steps, each after its step's name; None is the step's end."""


class _Process:
    """A step's process and all that it starts, in a group of their own; its lines go to a queue."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        lines: _Lines,
        lock: int | None = None,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="sft-")
        self._progress = Path(self._scratch.name) / "progress"
        self._process = subprocess.Popen(
            command,
            env={
                **environment,
                "ARGO_PROGRESS_FILE": str(self._progress),
                PARENT: str(os.getpid()),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the engine alone, which then ends the steps
            # A step that outlives a killed engine keeps the run locked.
            pass_fds=() if lock is None else (lock,),
        )
        self._reader = threading.Thread(target=self._read, args=(name, lines), daemon=True)
        self._reader.start()
        self._watcher = threading.Thread(target=self._watch, args=(name, lines), daemon=True)
        self._watcher.start()

    def _read(self, name: str, lines: _Lines) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                lines.put((name, line.rstrip("\n")))

    def _watch(self, name: str, lines: _Lines) -> None:
        """Report the end when the step itself has ended, whoever still holds its output."""
        self._process.wait()
        self._signal(signal.SIGKILL)  # what it has left behind
        self._reader.join(_SECONDS_TO_DRAIN)
        lines.put((name, None))

    def progress(self) -> tuple[int, int] | None:
        """Units done and in all, if the step has said so."""
        try:
            done, _, total = self._progress.read_text().strip().partition("/")
            return int(done), int(total)
        except (OSError, ValueError):
            return None

    def terminate(self) -> None:
        """Ask the step to stop and keep its state."""
        self._signal(signal.SIGTERM)

    def end(self, patience: float | None = None) -> int:
        """Wait for the end, for `patience` seconds at most before it is killed; its exit code."""
        self._watcher.join(patience)
        if self._watcher.is_alive():
            self._signal(signal.SIGKILL)
            self._watcher.join()
        self._scratch.cleanup()
        return _code(self._process.returncode)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _stop(processes: Collection[_Process]) -> None:
    """End them all, side by side."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.end(_SECONDS_TO_STOP)


def _command(step: Step, params: StepParams, options: _Options) -> list[str]:
    # evaluate's log level is a parameter of its own, too: where it is set, it wins.
    own = {flags.flag(name) for name in params.model_fields_set}
    told = [
        argument
        for argument in flags.arguments(options.bound)
        if argument.partition("=")[0] not in own
    ]
    # -P: a folder named `steps` where the user stands is not taken for ours.
    return [sys.executable, "-P", "-m", step.module, *told, *flags.arguments(params)]


def _environment(params: StepParams) -> dict[str, str]:
    # Variables of the user's own that look like parameters count for nothing: the run's file and
    # record would not tell of them.
    inherited = set(os.environ) - {flags.variable(name) for name in type(params).model_fields}
    return {
        **{name: os.environ[name] for name in inherited},
        **flags.environment(params),
        "PYTHONUNBUFFERED": "1",
    }


def _told(line: str) -> tuple[str | None, str]:
    """Level and message of a step's log line; no level for any other line."""
    found = _LINE.match(line)
    return (found[1], found[2]) if found else (None, line)


def _code(returncode: int) -> int:
    """The exit code as a shell tells it: 128 and the signal's number for a killed process."""
    return returncode if returncode >= 0 else 128 - returncode


@contextlib.contextmanager
def _locked(workspace: Workspace, console: Console) -> Iterator[int]:
    """Hold the run: two engines at once would write over one another."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    lock = os.open(workspace.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _SECONDS_TO_STOP
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"{workspace.root}: another process works on this run; "
                        "wait for it, or choose another --run-name"
                    ) from None
                if not waiting:
                    console.note("waiting for another process of this run to end")
                waiting = True
                time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM an exception, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
