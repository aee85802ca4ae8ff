"""launch validate: every mistake of a job file at once."""

import dataclasses
import os

import click

from launcher.errors import SpecError
from launcher.services.options import job_options, json_option
from launcher.services.prepare import Request, prepare
from launcher.terminal import ui


@click.command("validate")
@job_options
@json_option
def command(request: Request, json_output: bool) -> None:
    """Exit code 0 when the job could be started, as far as this machine can tell, 2 otherwise. Asks no cluster: files
    that the job reads are looked for where it runs on this machine, without a container."""
    try:
        prepared = prepare(dataclasses.replace(request, to_start=True), os.environ)
    except SpecError as error:
        if json_output:
            ui.as_json({"valid": False, "problems": error.message.splitlines()})
        raise
    if json_output:
        ui.as_json({"valid": True, "problems": [], "notes": prepared.notes, "run_id": prepared.base_id})
    else:
        for note in prepared.notes:
            ui.note(note)
        where = f"cluster {prepared.cluster}" if prepared.cluster else "this machine"
        ui.note(f"{request.path}: valid for {where}, back end {prepared.profile.backend}")
