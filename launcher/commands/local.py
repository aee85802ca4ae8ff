"""launch local."""

import os
import signal
from pathlib import Path

import click

from launcher import ui
from launcher.backends.registry import load_backend
from launcher.commands.options import job_options, request, run_store
from launcher.commands.watch import watch
from launcher.prepare import prepare
from launcher.submit import submit_run


@click.command("local")
@job_options
@click.option("--container", is_flag=True, help="In the job's image, by podman or docker.")
def command(job: Path, overrides: tuple[str, ...], clusters: Path | None, container: bool) -> None:
    """Ctrl-C ends the job, after time for a last checkpoint; a second Ctrl-C ends it at once. The job's cluster is
    not looked at: each of its nodes becomes a group of processes here."""
    prepared = prepare(request(job, (*overrides, "cluster=null"), clusters, backend="local", container=container), os.environ)
    store = run_store()
    backend = load_backend("local", store, dict(os.environ))
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
