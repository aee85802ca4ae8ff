"""launch submit."""

import dataclasses
import os
from contextlib import nullcontext
from typing import Any

import click

from launcher.backends.registry import load_backend
from launcher.job.kind import Estimable
from launcher.job.prepared import Prepared
from launcher.services.options import backend_option, folder_options, job_options, prepared_run, run_store
from launcher.services.prepare import Request, checked_run_id
from launcher.services.rendering import rendered
from launcher.services.resume import COMMAND, command_of, resuming
from launcher.services.submit import first_free, submit_run
from launcher.terminal import ui


@click.command("submit")
@job_options
@folder_options
@backend_option("Send to this back end with plain defaults. Default: the job's cluster.")
@click.option("--run-id", help="Name the run. Default: the job's name and a hash; -2, -3, ... when it is taken.")
@click.option("--dry-run", is_flag=True, help="Print exactly what would be sent, and send nothing.")
@click.option("--follow", is_flag=True, help="Go on to the logs; the exit code is then the job's: 0 or 5.")
@click.option("--even-if-too-big", is_flag=True, help="Send a job that `launch estimate` says does not fit, too.")
def command(request: Request, backend: str | None, run_id: str | None, dry_run: bool, follow: bool,
            even_if_too_big: bool, **folder: Any) -> None:
    """Prints the run's handle alone on stdout. Without a cluster the job starts detached on this machine. A job that
    cannot fit its GPUs (gpu_memory of the cluster's profile) or the memory it asks for is refused."""
    store = run_store()
    request = dataclasses.replace(request, backend=backend)
    typed = command_of("submit", request)
    with nullcontext() if dry_run else store.refusal_noted(request.path):
        prepared = prepared_run(request, store, **folder)
        if not even_if_too_big:
            _refuse_too_big(request, prepared)
        target = load_backend(prepared.profile.backend, store, {**os.environ, COMMAND: typed})
        if dry_run:
            for note in prepared.notes:
                ui.note(note)
            free = first_free(store, checked_run_id(run_id) or prepared.base_id, set(), prepared)
            ui.raw(rendered(prepared, free).text)
            return
        run = submit_run(prepared, target, store, os.environ, run_id=checked_run_id(run_id), tell=ui.note)
    ui.data(run.handle)
    if follow:
        from launcher.services.follow import watch

        watch(target, store, run, resuming("submit", request, prepared.kind, run))
    else:
        ui.note(f"follow it: launch logs -f {run.run_id}")


def _refuse_too_big(request: Request, prepared: Prepared) -> None:
    """Raise SpecError with the nearest change. Where nobody can tell, the job is sent; a close call is told."""
    if not isinstance(prepared.kind, Estimable):
        return
    from launcher.kinds.train.assess import misfit

    found = prepared.kind.assess(prepared.job.section, prepared)
    if found.fit.word == "does not fit":
        raise misfit(request.path, found, f"; see launch estimate {request.path}; to send it all the same: "
                                          "--even-if-too-big")
    if found.fit.is_close:
        ui.warn(f"{request.path}: {prepared.kind.key}: {found.fit.reasons[0]}")
