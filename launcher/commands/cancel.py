"""launch cancel."""

import os

import click

from launcher import ui
from launcher.backends.registry import load_backend
from launcher.commands.options import run_argument, run_store


@click.command("cancel")
@run_argument
def command(run: str | None) -> None:
    """The job gets time for a last checkpoint. Cancelling twice, or after the end, changes nothing."""
    store = run_store()
    found = store.find(run)
    backend = load_backend(found.backend, store, dict(os.environ))  # type: ignore[arg-type]
    before = backend.status(found).state
    if before.ended:
        store.drop_secrets(found.run_id)
        ui.note(f"{found.run_id} has ended already: {before}")
        return
    backend.cancel(found)
    store.drop_secrets(found.run_id)
    ui.note(f"{found.run_id}: cancelled")
