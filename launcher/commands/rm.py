"""launch rm."""

import click

from launcher.services.backends import Backends
from launcher.services.options import agreed, run_store, yes_option
from launcher.services.retention import removable, remove_run
from launcher.terminal import ui


@click.command("rm")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@yes_option
def command(runs: tuple[str, ...], yes: bool) -> None:
    """Their records, logs and collected results on this machine and, on Kubernetes, the finished Job with all that it
    owns. Output folders stay, on this machine and on every volume. RUN: an id, its start, or a handle. When one of them
    has not ended, nothing is removed: end it with `launch cancel`."""
    store = run_store()
    backends = Backends(store)
    found = removable(store, backends, runs)
    ids = [run.run_id for run in found]
    if agreed(f"remove {', '.join(ids)}?", yes=yes, again=f"launch rm --yes {' '.join(ids)}"):
        for run in found:
            remove_run(store, backends.of(run), run)
        ui.note(f"{', '.join(ids)}: removed")
