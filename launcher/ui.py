"""Talking to people: data on stdout, everything else on stderr. Rich is loaded only for a terminal."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.backends.base import JobStatus, LogLine, State
from launcher.errors import LaunchError

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_STATE_COLOURS: dict[str, str] = {
    State.SUCCEEDED: "green", State.FAILED: "red", State.CANCELLED: "yellow", State.RUNNING: "cyan",
}


def data(text: str) -> None:
    """One line of data, on stdout."""
    print(text, flush=True)


def raw(text: str) -> None:
    """Text exactly as it is, on stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


def as_json(value: Any) -> None:
    """One JSON line on stdout."""
    data(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """What is being done, on stderr."""
    print(f"* {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Something the user should know, on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def show_error(error: LaunchError) -> None:
    """An error and its hint, on stderr; a list of mistakes keeps one line each."""
    for line in error.message.splitlines():
        print(line if line.startswith("  ") else f"error: {line}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {error.hint}", file=sys.stderr)


def coloured(stream: Any = None) -> bool:
    """Whether to colour: a terminal, and NO_COLOR not set (no-color.org)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR")


def log_line(line: LogLine, width: int) -> str:
    """A line with its node in front: `[node 3] text`."""
    return f"[node {line.node:>{width}}] {line.text}"


def print_logs(lines: Iterator[LogLine], *, nodes: int, json_lines: bool) -> None:
    """Log lines as they come: JSON, coloured prefixes on a terminal, plain text elsewhere."""
    width = len(str(max(0, nodes - 1)))
    if json_lines:
        for line in lines:
            as_json({"node": line.node, "text": line.text, "stamp": line.stamp})
    elif coloured():
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        for line in lines:
            prefix = Text(f"[node {line.node:>{width}}] ", style=_COLOURS[line.node % len(_COLOURS)])
            console.print(prefix + Text.from_ansi(line.text))
    else:
        for line in lines:
            data(log_line(line, width))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on stdout; on a terminal states are coloured."""
    if coloured():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for title in header:
            table.add_column(title)
        for row in rows:
            table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    for row in [header, *rows]:
        data("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def status_rows(status: JobStatus) -> list[list[str]]:
    """One row per node, for `print_table`."""
    return [[str(node.node), node.state, node.host or "-", "-" if node.exit_code is None else str(node.exit_code),
             str(node.restarts), node.reason or ""] for node in status.nodes]


def _style(cell: str) -> str:
    return _STATE_COLOURS.get(cell, "")
