"""launch status."""

import dataclasses
import os

import click

from launcher.backends.registry import load_backend
from launcher.services.ends import status_of
from launcher.services.options import json_option, run_argument, run_store
from launcher.terminal import ui


@click.command("status")
@run_argument
@json_option
def command(run: str | None, json_output: bool) -> None:
    """States: pending, running, succeeded, failed, cancelled, unknown; the same words on every back end."""
    store = run_store()
    found = store.find(run)
    status = status_of(load_backend(found.backend, store, dict(os.environ)), store, found)
    if json_output:
        ui.as_json({"run": found.run_id, "handle": found.handle, **dataclasses.asdict(status)})
        return
    ui.data(f"{found.run_id}  {status.state}" + (f"  {status.reason}" if status.reason else ""))
    if status.nodes:
        ui.print_table(["NODE", "STATE", "HOST", "EXIT", "RESTARTS", "REASON"], ui.status_rows(status))
