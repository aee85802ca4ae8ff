"""launch logs."""

import os
from itertools import chain

import click

from launcher import ui
from launcher.backends.registry import load_backend
from launcher.commands.options import json_option, run_argument, run_store
from launcher.logs.line import LogQuery


@click.command("logs")
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each node.")
@click.option("--node", type=click.IntRange(min=0), metavar="N", help="Only this node.")
@json_option
def command(run: str | None, follow: bool, tail: int | None, node: int | None, json_output: bool) -> None:
    """All nodes at once; `[node 3]` in front says which. The latest run when RUN is left out."""
    store = run_store()
    found = store.find(run)
    backend = load_backend(found.backend, store, dict(os.environ))  # type: ignore[arg-type]
    query = LogQuery(follow=follow, tail=tail, node=node)
    lines = chain.from_iterable(backend.logs(found, query))
    ui.print_logs(lines, nodes=found.nodes, json_lines=json_output)
    store.collect_results(found)
