"""launch age: how long ago a run was started."""

import datetime

import click

from launcher.job.quantities import rough_duration
from launcher.services.options import run_argument, run_store
from launcher.terminal import ui


@click.command("age")
@run_argument
def command(run: str | None) -> None:
    """Print it. The latest run when RUN is left out."""
    found = run_store().find(run)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found.created)
    ui.data(f"{found.run_id}  {rough_duration(age.total_seconds())}")
