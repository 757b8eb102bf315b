"""What a run looks like on a terminal, and as plain lines elsewhere."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

_STYLES = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red", "DEBUG": "dim"}
_WIDTH = 9  # of the longest step's name


class Console:
    """Lines of the steps, each after its step's name; on a terminal with a bar for each that runs."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as Terminal

        self._terminal = Terminal(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars: Any = None
        self._tasks: dict[str, TaskID] = {}
        self.has_started = False
        """Whether any step has been started."""
        self.not_kept: list[str] = []
        """Flags of parameters that a run which is gone on with must be given again."""

    def __enter__(self) -> "Console":
        """Show bars from here on, if this is a terminal."""
        if self._terminal.is_terminal:
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bars = Progress(
                TextColumn("[bold cyan]{task.description:9}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._terminal,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away."""
        if self._bars:
            self._bars.stop()

    @property
    def has_bars(self) -> bool:
        """Whether progress is seen without a line for it."""
        return self._bars is not None

    def note(self, text: str) -> None:
        """A line of the run itself."""
        self.line("sft", "INFO", text)

    def error(self, text: str) -> None:
        """A failure of the run itself."""
        self.line("sft", "ERROR", text)

    def line(self, name: str, level: str | None, text: str) -> None:
        """A line of a step. Without a level it is a library's: only shown as an aside."""
        from rich.text import Text

        style = "dim" if level is None else _STYLES.get(level, "")
        self._terminal.print(
            Text(f"{name:{_WIDTH}} ", style="cyan").append(Text(text, style=style))
        )

    def show(self, block: "RenderableType") -> None:
        """A block of the run's end, on standard output."""
        from rich.console import Console as Terminal

        Terminal(highlight=False, soft_wrap=True).print(block)

    def started(self, name: str) -> None:
        """A step has started."""
        self.has_started = True
        if self._bars:
            self._tasks[name] = self._bars.add_task(name, total=None)

    def progress(self, name: str, units: tuple[int, int] | None) -> None:
        """How far a step's current work is."""
        if self._bars and units:
            done, total = units
            self._bars.update(self._tasks[name], completed=done, total=total)

    def finished(self, name: str) -> None:
        """A step has ended well."""
        if self._bars:
            self._bars.remove_task(self._tasks.pop(name))
