"""What the verbs that start the trainer share: which run or folder is meant, the trainer in front, how it ends."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from launcher.backends.processes import run_in_front
from launcher.errors import BackendError, JobFailedError, SpecError
from launcher.runs.record import Run
from launcher.runs.store import RunStore
from launcher.services.options import run_store, typed_for

RESULTS = ("adapter", "model", "checkpoint-*")  # what the trainer leaves, at its end or before
CONFIG_ERROR, INTERRUPTED, CLOSED_PIPE = 78, 130, 141  # trainer/errors.py, trainer/cli.py


class Place(NamedTuple):
    """What the trainer opens. `job_dir`: what relative paths in a run's config mean; `run`: the run that left it, where
    one was named."""

    path: str
    job_dir: str | None = None
    run: Run | None = None


def find_place(reference: str | None) -> Place | None:
    """A folder as it is; a run as RunStore.find takes it; None for what is neither. Raises NotFoundError, LaunchError
    for a damaged record, SpecError for a run that has trained nothing, BackendError for one whose output folder this
    machine cannot see."""
    if reference is not None and Path(reference).expanduser().is_dir():
        return Place(str(Path(reference).expanduser()))
    store = run_store()
    run = store.find(reference) if reference is None or "://" in reference else store.lookup(reference)
    if run is None:
        return None
    if run.outputs is None:
        raise SpecError(f"{run.run_id} has trained nothing: its job has no `train`", _latest_trained(store, reference))
    if run.output_dir is not None and Path(run.output_dir).is_dir():
        return Place(run.output_dir, run.job_dir, run)
    if run.output_dir is not None and run.backend == "local":
        raise SpecError(f"{run.run_id} has no output folder: {run.output_dir} was never made, or is gone",
                        _latest_trained(store, reference))
    raise BackendError(
        f"{run.run_id}: its output is in {run.output_dir or 'a volume of its cluster'}, which cannot be reached from "
        "here",
        "copy the folder to this machine, and name the copy; or run this where it can be reached")


def _latest_trained(store: RunStore, reference: str | None) -> str:
    """What to type for the latest run whose output is here."""
    for run in reversed(store.all()):
        if run.output_dir and _has_results(Path(run.output_dir)):
            return f"the latest run that has trained here: {typed_for(run.run_id, reference)}"
    return "list the runs: launch list"


def _has_results(output: Path) -> bool:
    return any(path for pattern in RESULTS for path in output.glob(pattern))


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of the trainer by their names; those that are None or False are left out."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    words = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    return [word if value is True else f"{word}={value}" for word, value in words.items()]


def run_trainer(verb: str, arguments: Sequence[str], *, cwd: Path | None = None, mistake: str | None = None) -> None:
    """Run a command of the trainer in front, Ctrl-C and all; it has told its mistakes itself, and `mistake` says what
    they mean here. Ends launch with the trainer's exit code, as launch has them. Raises SpecError, JobFailedError."""
    # -P: a module in the job's folder is not taken for one of the trainer's
    code = run_in_front([sys.executable, "-P", "-m", "trainer.cli", verb, *arguments], cwd=cwd or Path.cwd(),
                        env=dict(os.environ))
    if code == CONFIG_ERROR and mistake:
        raise SpecError(mistake)
    ends = {0: 0, CONFIG_ERROR: SpecError.exit_code, INTERRUPTED: INTERRUPTED, CLOSED_PIPE: CLOSED_PIPE}
    if code not in ends:
        raise JobFailedError(f"the trainer ended with {code}" + _why(code))
    if code:
        click.get_current_context().exit(ends[code])


def _why(code: int) -> str:
    return ": it was killed, perhaps because memory ran out" if code == 128 + signal.SIGKILL else ""

