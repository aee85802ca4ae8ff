"""Talking to people: data on stdout, everything else on stderr. Rich is loaded only for a terminal.

All output of launch passes here or terminal/screen.py. What a cluster, a job or a file says is in most of it, so
nothing is written that a terminal would obey.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from launcher.errors import LaunchError
from launcher.logs.line import Batch, LogLine
from launcher.terminal.control import json_text, terminal_safe

if TYPE_CHECKING:
    from launcher.runs.status import JobStatus

_STATE_COLOURS: dict[str, str] = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan",
}


def data(text: str) -> None:
    """One line of data, on stdout."""
    print(_one_line(text), flush=True)


def raw(text: str) -> None:
    """Text on stdout: for a program exactly as it is."""
    sys.stdout.write(terminal_safe(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def as_json(value: Any) -> None:
    """One JSON line on stdout."""
    print(json_text(value), flush=True)


def note(text: str) -> None:
    """What is being done, on stderr."""
    _tell(f"* {text}")


def warn(text: str) -> None:
    """Something the user should know, on stderr."""
    _tell(f"warning: {text}")


def show_error(error: LaunchError) -> None:
    """An error and its hint, on stderr; a list of mistakes keeps one line each."""
    for line in error.message.splitlines():
        _tell(line if line.startswith("  ") else f"error: {line}")
    if error.hint:
        _tell(f"hint:  {error.hint}")


def confirm(question: str) -> bool:
    """Whether the person at the terminal agrees; not unless they say so."""
    import click

    return click.confirm(terminal_safe(question), err=True)


def _one_line(text: str) -> str:
    return terminal_safe(" ".join(text.splitlines()))


def _tell(text: str) -> None:
    print(terminal_safe(text), file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it."""
    return stream.isatty()


def coloured(stream: TextIO | None = None) -> bool:
    """Whether to colour: a terminal, and NO_COLOR not set (no-color.org)."""
    return is_terminal(stream or sys.stdout) and not os.environ.get("NO_COLOR")


def print_logs(batches: Iterable[Batch], *, nodes: int, json_lines: bool = False, stream: TextIO | None = None,
               bar: str | None = None) -> None:
    """Log lines as they come: JSON; on a terminal colours, unfinished lines and a bar; elsewhere the job's own bytes.

    `[node N]` stands in front when there are several nodes.
    """
    stream = stream or sys.stdout
    if is_terminal(stream) and not json_lines:
        from launcher.terminal.screen import Screen

        with Screen(stream, nodes=nodes, bar=bar) as screen:
            for batch in batches:
                screen.show(batch)
        return
    stream.flush()
    write = _json_line if json_lines else _raw_line(len(str(nodes - 1)) if nodes > 1 else 0)
    for batch in batches:
        stream.buffer.write(b"".join([write(line) for line in batch]))
        stream.buffer.flush()


def _json_line(line: LogLine) -> bytes:
    value: dict[str, Any] = {"node": line.node, "text": line.text, "stamp": line.stamp}
    if line.gap:
        value = {"node": line.node, "gap": line.gap._asdict()}
    return json_text(value).encode() + b"\n"


def _raw_line(width: int) -> Callable[[LogLine], bytes]:
    if not width:
        return lambda line: line.raw + b"\n"
    return lambda line: b"[node %*d] %s\n" % (width, line.node, line.raw)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on stdout; on a terminal states are coloured."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
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


def status_rows(status: "JobStatus") -> list[list[str]]:
    """One row per node, for `print_table`."""
    return [[str(node.node), node.state, node.host or "-", "-" if node.exit_code is None else str(node.exit_code),
             str(node.restarts), node.reason or ""] for node in status.nodes]


def _style(cell: str) -> str:
    return _STATE_COLOURS.get(cell, "")
