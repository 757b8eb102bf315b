"""The pipeline on this machine: each step the same command as in its container, as a process.

A run is a folder. Every step decides from its record whether it is done, so running the same
folder again does only what is missing.
"""

import contextlib
import fcntl
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from steps import files, flags, record
from steps.entrypoint import PARENT
from steps.errors import StepError, Terminated, UsageError
from steps.logs import redact
from steps.params import Bound, StepParams, is_secret, shown
from steps.record import Record
from steps.workspace import Workspace
from workflows import values
from workflows.console import Console
from workflows.pipeline import SFT, Pipeline, Step

Verbosity = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_SECONDS_TO_STOP = 60
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
    cache: Path
    claims: Path
    verbosity: Verbosity


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
            hold unless given anew, and only what is not done is done.
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
    options = _Options(pipeline, start, cache or default_cache(), claims, verbosity)
    folder = Workspace(workspace.absolute())
    chosen = _parameters(parameters, options, folder, problems)
    if check_only:
        _check(chosen, options, folder, console)
        return {}
    with _locked(folder, console) as lock:
        _check(chosen, options, folder, console)
        _keep_parameters(chosen, options, folder)
        _Engine(chosen, options, folder, console, lock).run()
    found = {name: record.read(folder, name) for name in chosen}
    return {name: done for name, done in found.items() if done}


def _parameters(
    given: Mapping[str, Any], options: _Options, workspace: Workspace, known: Sequence[str]
) -> dict[str, StepParams]:
    """The models of the steps that are to run."""
    kept: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        kept = yaml.safe_load(_parameters_file(workspace).read_text(encoding="utf-8")) or {}
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
    values.refuse([*known, *problems, *wrong])
    values.refuse(options.pipeline.refusals(models))
    return models


def _parameters_file(workspace: Workspace) -> Path:
    return workspace.root / "params.yaml"


def _keep_parameters(
    chosen: Mapping[str, StepParams], options: _Options, workspace: Workspace
) -> None:
    """Write what was set, so that a resumed run has it; what may be a secret is not kept."""
    path = _parameters_file(workspace)
    kept: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        kept = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for parameter in options.pipeline.parameters():
        model = chosen.get(parameter.step.name)
        name = parameter.field_name
        if model is None or name not in model.model_fields_set:
            continue
        value = model.model_dump(mode="json")[name]
        if shown(model)[name] == value and not is_secret(parameter.field):
            kept[parameter.name] = value
    files.write(path, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


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
    commands = {
        name: subprocess.Popen(
            [*_command(options.pipeline.step(name), chosen[name], options, workspace), "--check"],
            env=_environment(chosen[name]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        for name in todo
    }
    failed = []
    try:
        for name, process in commands.items():
            output, _ = process.communicate()
            lines = [_told(line) for line in output.splitlines()]
            for level, text in lines:
                if level in ("WARNING", "ERROR", "CRITICAL") or process.returncode:
                    console.line(name, level, text)
            if process.returncode:
                failed.append((name, _code(process.returncode)))
    finally:
        for process in commands.values():
            if process.poll() is None:
                process.kill()
    if failed:
        names = " and ".join(name for name, _ in failed)
        raise StepFailedError(
            failed[0][0], failed[0][1], f"the check of {names} failed; nothing was started"
        )


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
        self._done: dict[str, Record] = {}
        self._lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
        self._asides: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_ASIDES_SHOWN))

    def run(self) -> None:
        """Run all; raise StepFailedError at the first step that fails, once the others have stopped.

        Raises UsageError where what a step has found leaves a later one nothing to do.
        """
        try:
            with _terminable():
                self._start_ready()
                while self._running:
                    self._turn()
        except BaseException:
            self._stop()
            raise

    def _start_ready(self) -> None:
        open_steps = {step.name for step in self._waiting} | set(self._running)
        for step in list(self._waiting):
            if not open_steps & set(step.needs):
                self._waiting.remove(step)
                self._running[step.name] = _Process(
                    step,
                    _command(step, self._chosen[step.name], self._options, self._workspace),
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
            if self._options.verbosity != "DEBUG":
                return
        self._console.line(name, level, text)

    def _stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.end(_SECONDS_TO_STOP)
        with contextlib.suppress(queue.Empty):
            while True:
                name, line = self._lines.get_nowait()
                if line is not None:
                    self._tell(name, line)


class _Process:
    """A step's process, its lines sent to a queue; None in the queue is its end."""

    def __init__(
        self,
        step: Step,
        command: list[str],
        environment: dict[str, str],
        lines: "queue.Queue[tuple[str, str | None]]",
        lock: int,
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
            pass_fds=(lock,),  # a step that outlives a killed engine keeps the run locked
        )
        self._reader = threading.Thread(target=self._read, args=(step.name, lines), daemon=True)
        self._reader.start()

    def _read(self, name: str, lines: "queue.Queue[tuple[str, str | None]]") -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            lines.put((name, line.rstrip("\n")))
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def end(self, patience: float | None = None) -> int:
        """Wait for the end, for `patience` seconds at most before it is killed; its exit code."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._scratch.cleanup()
        return _code(self._process.returncode)


def _command(step: Step, params: StepParams, options: _Options, workspace: Workspace) -> list[str]:
    bound = Bound(
        workspace=workspace.root,
        cache=options.cache.absolute(),
        claims=options.claims,
        verbosity=options.verbosity,
        run_name=workspace.root.name,
    )
    # evaluate's log level is a parameter of its own, too: where it is set, it wins.
    own = {flags.flag(name) for name in params.model_fields_set}
    told = [
        argument for argument in flags.arguments(bound) if argument.partition("=")[0] not in own
    ]
    # -P: a folder named `steps` where the user stands is not taken for ours.
    return [sys.executable, "-P", "-m", step.module, *told, *flags.arguments(params)]


def _environment(params: StepParams) -> dict[str, str]:
    return {**os.environ, **flags.environment(params), "PYTHONUNBUFFERED": "1"}


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
