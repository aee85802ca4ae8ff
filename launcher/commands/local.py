"""launch local."""

import os
import signal

import click

from launcher import ui
from launcher.backends.registry import load_backend
from launcher.commands.options import job_options, run_store
from launcher.commands.watch import watch
from launcher.prepare import Request, on_this_machine, prepare
from launcher.submit import submit_run


@click.command("local")
@job_options
@click.option("--container", is_flag=True, help="In the job's image, by podman or docker.")
def command(request: Request, container: bool) -> None:
    """Ctrl-C ends the job, after time for a last checkpoint; a second Ctrl-C ends it at once. The job's cluster is
    not looked at: each of its nodes becomes a group of processes here."""
    store = run_store()
    backend = load_backend("local", store, dict(os.environ))
    with store.refusal_noted(request.path):
        prepared = prepare(on_this_machine(request, container=container), os.environ)
        run = submit_run(prepared, backend, store, os.environ)
    ui.note(f"run {run.run_id}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        watch(backend, store, run)
    except KeyboardInterrupt:
        ui.note("stopping; again to stop at once")
        backend.cancel(run)
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
