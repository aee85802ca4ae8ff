"""Log lines on a terminal: finished lines scroll; below them stay a line for each node that has an unfinished one, and
a bar for the training's steps. Rich is loaded when a screen is made."""

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

from launcher.logs.line import Batch, LogLine
from launcher.logs.progress import Step, parse_step
from launcher.terminal.control import printable, terminal_safe

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_VALUES = r"(?<= )\S+(?=  |$)"  # of a step line
REDRAWS_PER_S = 10


class Screen:
    """Use it as a context manager. With `bar`, node 0's step lines move a bar of that name instead of scrolling."""

    def __init__(self, stream: TextIO, *, nodes: int, bar: str | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=stream, highlight=False, soft_wrap=True)
        self._width = len(str(nodes - 1)) if nodes > 1 else 0
        self._unfinished: dict[int, LogLine] = {}
        self._bar = _Bar(bar) if bar else None
        # Other streams scroll above, too, when they are the same terminal; one that leads to a file is left alone.
        self._live = Live(console=console, transient=True, get_renderable=self._below, refresh_per_second=REDRAWS_PER_S,
                          redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty())

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._live.stop()

    def show(self, batch: Batch) -> None:
        """Add lines."""
        finished = []
        for line in batch:
            if line.live:
                self._unfinished[line.node] = line
                continue
            self._unfinished.pop(line.node, None)
            step = parse_step(line.text) if self._bar and line.node == 0 else None
            if step and self._bar:
                self._bar.move(step)
            else:
                finished.append(self._text(line))
        if finished:
            from rich.text import Text

            self._live.console.print(Text("\n").join(finished))

    def _below(self) -> Any:
        from rich.console import Group

        lines: Iterable[Any] = [self._text(line) for _, line in sorted(dict(self._unfinished).items())]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines, *([self._bar.drawn] if self._bar and self._bar.moved else []))

    def _text(self, line: LogLine) -> Any:
        from rich.text import Text

        text = printable(line.text)
        shown = Text.from_ansi(text) if "\x1b" in text else Text(text, style="bold red" if line.gap else "")
        if parse_step(text):
            shown.highlight_regex(_VALUES, "cyan")
        if not self._width:
            return shown
        return Text(f"[node {line.node:>{self._width}}] ", style=_COLOURS[line.node % len(_COLOURS)]).append_text(shown)


class _Bar:
    """How far the training is."""

    def __init__(self, name: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.drawn = Progress(
            TextColumn("{task.description}", style="bold", markup=False), BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn())
        self.moved = False
        self._task = self.drawn.add_task(terminal_safe(name), total=None, values="")

    def move(self, step: Step) -> None:
        values = "  ".join(f"{name} {value}" for name, value in step.values.items())
        self.drawn.update(self._task, completed=step.step, total=step.total, values=terminal_safe(values))
        self.moved = True
