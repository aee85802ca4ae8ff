"""launch cancel."""

import datetime
import os
import sys

import click

from launcher.backends.registry import load_backend
from launcher.errors import SpecError
from launcher.job.quantities import rough_duration
from launcher.runs.record import Run
from launcher.runs.store import RunStore
from launcher.services.ends import states_of, status_of
from launcher.services.options import agreed, run_argument, run_store, yes_option
from launcher.terminal import ui

NEWEST = 10  # runs that are looked at for a list of those that could be meant


@click.command("cancel")
@run_argument
@yes_option
def command(run: str | None, yes: bool) -> None:
    """The job gets time for a last checkpoint. Cancelling twice, or after the end, changes nothing. When RUN is left
    out, the latest run is meant: it is named and asked about, or with --yes ended unasked. Without a terminal to ask
    on, RUN or --yes is needed."""
    store = run_store()
    found = store.find(run)
    must_ask = run is None and not yes
    if must_ask and not ui.is_terminal(sys.stdin):
        raise _unnamed(store)
    backend = load_backend(found.backend, store, dict(os.environ))
    before = status_of(backend, store, found).state
    if before.ended:
        ui.note(f"{found.run_id} has ended already: {before}")
        return
    again = f"launch cancel {found.run_id}"
    if not agreed(f"cancel {_described(found, before)}?", yes=not must_ask, again=again):
        return
    backend.cancel(found)
    status_of(backend, store, found)
    store.drop_secrets(found.run_id)
    ui.note(f"{found.run_id}: cancelled")


def _unnamed(store: RunStore) -> SpecError:
    """The mistake of naming no run where nobody can be asked, with the runs that have not ended."""
    newest = store.all()[-NEWEST:]
    states = states_of(store, newest)
    going = [(run, states[run.run_id]) for run in reversed(newest) if not states[run.run_id].ended]
    if not going:
        return SpecError("cancel: no run was named, and the latest ones have ended", "see all of them: launch list")
    lines = [f"  {_described(run, state)}" for run, state in going]
    return SpecError("\n".join(["cancel: no run was named; these have not ended:", *lines]),
                     f"name one: launch cancel {going[0][0].run_id}")


def _described(run: Run, state: str) -> str:
    """`ID (slurm, running, started 3 h ago)`."""
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(run.created)
    return f"{run.run_id} ({run.backend}, {state}, started {rough_duration(age.total_seconds())} ago)"
