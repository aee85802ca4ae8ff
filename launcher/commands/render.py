"""launch render: offline, and byte for byte what submit sends."""

import dataclasses
import os

import click

from launcher.services.options import backend_option, job_options
from launcher.services.prepare import Request, checked_run_id, prepare
from launcher.services.rendering import rendered
from launcher.terminal import ui


@click.command("render")
@job_options
@backend_option("Render for this back end. Default: the job's cluster.")
@click.option("--run-id", help="Name the run. Default: the job's name and a hash of all that the render depends on.")
def command(request: Request, backend: str | None, run_id: str | None) -> None:
    """Sends nothing and asks no cluster. Two things are placeholders because only a submit can know them: values
    of secrets, and the uid that Kubernetes gives to the job."""
    prepared = prepare(dataclasses.replace(request, backend=backend), os.environ)
    for note in prepared.notes:
        ui.note(note)
    ui.raw(rendered(prepared, checked_run_id(run_id) or prepared.base_id).text)
