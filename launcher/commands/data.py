"""launch data: the trainer's own pipeline on a job's rows, before anything is trained."""

import os
import sys
import tempfile
from pathlib import Path

import click

from launcher.commands.options import job_options, request
from launcher.edge.shell import run_through
from launcher.errors import JobFailedError, SpecError
from launcher.prepare import prepare


@click.command("data")
@job_options
@click.option("--dump", type=click.IntRange(min=0), default=3, show_default=True, metavar="N",
              help="How many encoded rows, before packing, as JSON lines: text, input_ids, labels (-100 is not trained).")
def command(job: Path, overrides: tuple[str, ...], clusters: Path | None, dump: int) -> None:
    """Counts, dropped and shortened rows go to stderr. Needs the trainer: pip install 'launch-trainer[train]'."""
    prepared = prepare(request(job, (*overrides, "cluster=null"), clusters, backend="local"), os.environ)
    plan = prepared.plan()
    if plan.train_yaml is None:
        raise SpecError(f"{job}: got no train section, allowed: a job with train (its data is what is shown)")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "train.yaml"
        config.write_text(plan.train_yaml, encoding="utf-8")
        code = run_through([sys.executable, "-m", "trainer.cli", "data", "--config", str(config), "--dump", str(dump)],
                           cwd=prepared.job_dir, env=dict(os.environ))
    if code:
        raise SpecError(f"{job}: the data cannot be used (see above)") if code == 78 else JobFailedError(f"the trainer ended with {code}")
