"""Following a run to its end, for `local` and `submit --follow`: log lines, and a progress line on a terminal."""

import sys
from collections.abc import Iterator
from itertools import chain

from launcher import ui
from launcher.backends.base import Backend, JobStatus, LogLine, State
from launcher.errors import JobFailedError
from launcher.logs.line import LogQuery
from launcher.logs.progress import Step, parse_step
from launcher.runs import Run, RunStore


def watch(backend: Backend, store: RunStore, run: Run) -> JobStatus:
    """Show the run until it ends. Raises JobFailedError when it failed or was cancelled."""
    lines = chain.from_iterable(backend.logs(run, LogQuery(follow=True)))
    if ui.coloured(sys.stderr):
        _show_live(lines, run)
    else:
        width = len(str(max(0, run.nodes - 1)))
        for line in lines:
            print(ui.log_line(line, width), file=sys.stderr, flush=True)  # noqa: T201
    status = backend.status(run)
    store.collect_results(run)
    if status.state is not State.SUCCEEDED:
        raise JobFailedError(f"{run.run_id} {status.state}: {status.reason or 'no reason given'}",
                             f"read it again: launch logs --tail 50 {run.run_id}")
    ui.note(f"{run.run_id} succeeded; its files: {store.folder(run.run_id)}")
    return status


def _show_live(lines: Iterator[LogLine], run: Run) -> None:
    """Log lines scroll above one progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
               TextColumn("{task.fields[values]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False, soft_wrap=True)) as progress:
        task = progress.add_task(run.name, total=None, values="", visible=False)
        for line in lines:
            step = parse_step(line.text)
            if step and line.node == 0:
                progress.update(task, completed=step.step, total=step.total, values=_values(step), visible=True)
            else:
                prefix = f"[node {line.node}] " if run.nodes > 1 else ""
                progress.console.print(Text(prefix) + Text.from_ansi(line.text))


def _values(step: Step) -> str:
    return "  ".join(f"{name} {value}" for name, value in step.values.items())
