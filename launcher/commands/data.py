"""launch data: the trainer's own pipeline on a job's rows, before anything is trained."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from launcher.commands.options import job_options
from launcher.edge.shell import run_through
from launcher.errors import JobFailedError, SpecError
from launcher.prepare import Prepared, Request, on_this_machine, prepare

CONFIG_ERROR = 78  # trainer/errors.py
INTERRUPTED, CLOSED_PIPE = 130, 141
COUNT = click.IntRange(min=0)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("data")
@job_options
@click.option("--rows", type=COUNT, default=1, show_default=True, metavar="N",
              help="How many of the first rows to show at every stage: as read, as messages, as text, as tokens.")
@click.option("--json", "json_output", is_flag=True, help="Print all of it as one JSON object instead.")
@click.option("--dump", type=COUNT, metavar="N",
              help="Print the first N samples, before packing, as JSON lines instead: text, input_ids, labels (-100: "
              "not trained). The counts go to stderr.")
@click.option("--html", type=FILE, metavar="FILE", help="Write all of it as one page for sharing, too.")
@click.option("--rejects", type=FILE, metavar="FILE",
              help="Write the rows that data.bad_rows: skip leaves out as JSON lines, too: file, line, problem, row.")
def command(request: Request, rows: int, json_output: bool, dump: int | None, html: Path | None,
            rejects: Path | None) -> None:
    """Rows in and out of every stage and why rows were left out, the exact text with what is trained in it, lengths,
    steps, and whether the tokenizer's own chat template makes the same tokens. Trains nothing and loads no weights;
    needs the trainer: pip install 'launch-trainer[train]'."""
    if json_output and dump is not None:
        raise SpecError("got --json and --dump, allowed: one of the two")
    options = ["--rows", str(rows), *(["--json"] if json_output else [])]
    for name, value in (("--dump", dump), ("--html", html and html.absolute()),
                        ("--rejects", rejects and rejects.absolute())):
        options += [name, str(value)] if value is not None else []
    code = _run_trainer(request, prepare(on_this_machine(request), os.environ), options)
    if code in (INTERRUPTED, CLOSED_PIPE):
        raise KeyboardInterrupt if code == INTERRUPTED else SystemExit(code)
    if code == CONFIG_ERROR:
        raise SpecError(f"{request.path}: the data cannot be used (see above)")
    if code:
        raise JobFailedError(f"the trainer ended with {code}")


def _run_trainer(request: Request, prepared: Prepared, options: Sequence[str]) -> int:
    plan = prepared.plan()
    if plan.train_yaml is None:
        raise SpecError(f"{request.path}: got no train section, allowed: a job with train (its data is what is shown)")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "train.yaml"
        config.write_text(plan.train_yaml, encoding="utf-8")
        return run_through([sys.executable, "-m", "trainer.cli", "data", "--config", str(config), *options],
                           cwd=prepared.job_dir, env=dict(os.environ))
