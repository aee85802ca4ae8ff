"""launch logs."""

import datetime
import os
import re
import sys
from contextlib import nullcontext, suppress
from typing import Any

import click

from launcher.backends.registry import load_backend
from launcher.errors import LaunchError
from launcher.job.quantities import duration_s
from launcher.logs.line import LogQuery
from launcher.services.ends import collect_results, status_of
from launcher.services.follow import watched
from launcher.services.options import json_option, run_argument, run_store
from launcher.terminal import ui


def _since(context: click.Context, option: click.Parameter, text: str | None) -> datetime.datetime | None:
    """How long ago, or a point in time; of this machine's time zone when it names none."""
    if text is None:
        return None
    try:
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=duration_s(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"must be a duration such as 10m or 2h, or a time such as 2026-11-24T11:20, not "
                                 f"{text!r}") from error


def _pattern(context: click.Context, option: click.Parameter, text: str | None) -> "re.Pattern[str] | None":
    try:
        return None if text is None else re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is not a Python regular expression: {error}") from error


@click.command("logs")
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Keep following until the run has ended.")
@click.option("--node", type=click.IntRange(min=0), metavar="N", help="Only this node.")
@click.option("--rank", type=click.IntRange(min=0), metavar="R",
              help="Only this rank: the lines that begin with `[rank R] ` or `[rankR]:`; unmarked ones are of their "
                   "node's first rank.")
@click.option("--since", callback=_since, metavar="TIME",
              help="Only lines since then: 10m, 2h, 2026-11-24T11:20. On Slurm and on this machine lines have no "
                   "times, and those of some 10 s before may come, too.")
@click.option("--grep", callback=_pattern, metavar="REGEX", help="Only lines in which this is found.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N",
              help="Only the last N lines of each node, of those that the other options leave.")
@json_option
def command(run: str | None, json_output: bool, **picks: Any) -> None:
    """All nodes at once; `[node 3]` in front says which. The latest run when RUN is left out. A line that says
    `launch: lines may be missing` is not the job's: it stands where the cluster threw lines away unread."""
    store = run_store()
    found = store.find(run)
    backend = load_backend(found.backend, store, dict(os.environ))
    query = LogQuery(**picks, live=picks["follow"] and not json_output and ui.is_terminal(sys.stdout))
    with watched(backend, found) if query.follow else nullcontext():
        ui.print_logs(backend.logs(found, query), nodes=found.nodes, json_lines=json_output)
    if query.follow:
        with suppress(LaunchError):  # the lines were the answer
            status = status_of(backend, store, found)
            ui.note(f"{found.run_id} {status.state}" + (f": {status.reason}" if status.reason else ""))
    collect_results(store, found)
