"""launch data: the trainer's own pipeline on a job's rows, before anything is trained."""

import os
import sys
import tempfile
from pathlib import Path

import click

from launcher.commands.options import job_options
from launcher.edge.shell import run_through
from launcher.errors import JobFailedError, SpecError
from launcher.prepare import Request, on_this_machine, prepare

CONFIG_ERROR = 78  # trainer/errors.py


@click.command("data")
@job_options
@click.option("--dump", type=click.IntRange(min=0), default=3, show_default=True, metavar="N",
              help="How many encoded rows, before packing, as JSON lines: text, input_ids, labels (-100: not trained).")
def command(request: Request, dump: int) -> None:
    """Counts, dropped and shortened rows go to stderr. Needs the trainer: pip install 'launch-trainer[train]'."""
    prepared = prepare(on_this_machine(request), os.environ)
    plan = prepared.plan()
    if plan.train_yaml is None:
        raise SpecError(f"{request.path}: got no train section, allowed: a job with train (its data is what is shown)")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "train.yaml"
        config.write_text(plan.train_yaml, encoding="utf-8")
        code = run_through([sys.executable, "-m", "trainer.cli", "data", "--config", str(config), "--dump", str(dump)],
                           cwd=prepared.job_dir, env=dict(os.environ))
    if code == CONFIG_ERROR:
        raise SpecError(f"{request.path}: the data cannot be used (see above)")
    if code:
        raise JobFailedError(f"the trainer ended with {code}")
