"""launch local."""

import dataclasses
import os
import signal

import click

from launcher.backends.registry import load_backend
from launcher.job.kind import Resumable
from launcher.services.follow import watch
from launcher.services.options import folder_options, job_options, prepared_run, run_store
from launcher.services.prepare import Request, on_this_machine
from launcher.services.resume import COMMAND, command_of
from launcher.services.submit import submit_run
from launcher.terminal import ui


@click.command("local")
@job_options
@folder_options
@click.option("--container", is_flag=True, help="In the job's image, by podman or docker.")
def command(request: Request, resume: str | None, new_folder: bool, container: bool) -> None:
    """Ctrl-C ends the job, after time for a last checkpoint; a second Ctrl-C ends it at once. The job's cluster is
    not looked at: each of its nodes becomes a group of processes here."""
    store = run_store()
    with store.refusal_noted(request.path):
        prepared = prepared_run(on_this_machine(request, container=container), store, resume, new_folder=new_folder)
        typed = command_of("local", dataclasses.replace(request, container=container))
        backend = load_backend("local", store, {**os.environ, COMMAND: typed})
        for note in prepared.notes:
            ui.note(note)
        run = submit_run(prepared, backend, store, os.environ)
    again = f"{typed} --resume {run.run_id}" if isinstance(prepared.kind, Resumable) else None
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        ui.note(f"run {run.run_id}")
        watch(backend, store, run, again)
    except KeyboardInterrupt:
        ui.note("stopping; again to stop at once")
        backend.cancel(run)
        if again:
            ui.note(f"stopped; to go on: {again}")
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
