"""launch data: the trainer's own pipeline on a job's rows, before anything is trained."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from launcher.errors import SpecError
from launcher.job.kind import ShowsData
from launcher.job.prepared import Prepared
from launcher.kinds.registry import able_to
from launcher.services.options import job_options
from launcher.services.prepare import Request, on_this_machine, prepare
from launcher.services.trainer_process import option_words, run_trainer

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
        raise SpecError("--json, --dump: only one of the two can be given")
    options = {"rows": rows, "json": json_output, "dump": dump, "html": html and html.absolute(),
               "rejects": rejects and rejects.absolute()}
    _show(request, prepare(on_this_machine(request), os.environ), option_words(options))


def _show(request: Request, prepared: Prepared, options: Sequence[str]) -> None:
    if not isinstance(prepared.kind, ShowsData):
        raise SpecError(f"{request.path}: has `{prepared.kind.key}`, and launch data takes jobs with "
                        f"`{'` or `'.join(able_to(ShowsData))}`")
    text = prepared.payload(prepared.base_id).files[prepared.kind.data_file]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / prepared.kind.data_file
        config.write_text(text, encoding="utf-8")
        run_trainer("data", ["--config", str(config), *options], cwd=prepared.job_dir,
                    mistake=f"{request.path}: the data cannot be used (see above)")
