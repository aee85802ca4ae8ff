"""launch validate: every mistake of a job file at once."""

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
    """Exit code 0 when the job could be rendered, 2 otherwise. Asks no cluster."""
    try:
        prepared = prepare(request, os.environ)
    except SpecError as error:
        if json_output:
            ui.as_json({"valid": False, "problems": error.message.splitlines()})
        raise
    if json_output:
        ui.as_json({"valid": True, "problems": [], "run_id": prepared.base_id})
    else:
        where = f"cluster {prepared.cluster}" if prepared.cluster else "this machine"
        ui.note(f"{request.path}: valid for {where}, back end {prepared.profile.backend}")
