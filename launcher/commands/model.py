"""What `chat` and `sample` share: which model is meant, how it answers, and the trainer that does it."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click

from launcher.commands.options import run_store
from launcher.edge.shell import run_in_front
from launcher.errors import BackendError, JobFailedError, NotFoundError
from launcher.runs import Run, RunStore
from trainer.config import TemplateName

CONFIG_ERROR, MISTAKE = 78, 2  # trainer/errors.py, launcher/errors.py
PASSED_ON = (0, 130, 141)
Command = Callable[..., Any]
FOLDER = click.Path(file_okay=False, path_type=Path)


class Place(NamedTuple):
    """What the trainer opens. `job_dir`: what relative paths in a run's config mean."""

    path: str
    job_dir: str | None = None


def model_options(command: Command) -> Command:
    """The options of how a model is held and answers, handed to the command as one mapping `wishes`."""
    options = (
        click.option("--adapter", type=FOLDER, metavar="DIR", help="Put this adapter on the model; may be the output "
                     "folder of the run that trained it, whose template then holds."),
        click.option("--template", type=click.Choice(get_args(TemplateName)), metavar="NAME",
                     help="Chat template. Default: that of the run; of other folders the one that their chat_template "
                     "is found to be, or `tokenizer`, or the family's."),
        click.option("--quantization", type=click.Choice(["nf4", "int8", "none"]),
                     help="How linear layers are held. Default: as the run trained; of other models none."),
        click.option("--dtype", type=click.Choice(["bf16", "fp32"]),
                     help="Precision of what is not quantised. Default: the run's, or bf16."),
        click.option("--temperature", type=click.FloatRange(0, 10), metavar="T",
                     help="0 always takes the likeliest token. Defaults of these four: runtime.sampling of the run, "
                     "else those of docs/config.md."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P",
                     help="Draw from the likeliest tokens of this total probability."),
        click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw from this many likeliest tokens."),
        click.option("--max-new-tokens", type=click.IntRange(1, 2**17), metavar="N", help="Longest answer in tokens."),
        click.option("--repetition-penalty", type=click.FloatRange(0, 10, min_open=True), metavar="F",
                     help="Divide the scores of tokens that are there already by this. Default: 1, which changes "
                     "nothing."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N",
                     help="Draw the same answers again. Default: others each time."),
    )
    names = ("adapter", "template", "quantization", "dtype", "temperature", "top_p", "top_k", "max_new_tokens",
             "repetition_penalty", "seed")

    @functools.wraps(command)
    def with_wishes(**given: Any) -> Any:
        wishes = {name: given.pop(name) for name in names}
        return command(wishes=wishes, **given)

    decorated: Command = with_wishes
    for decorate in reversed(options):
        decorated = decorate(decorated)
    return decorated


def find_place(reference: str | None) -> Place:
    """A folder as it is; a run by id, handle or the start of its id, the latest when None; else a name on the hub.
    Raises NotFoundError, or BackendError for a run whose output folder this machine cannot see."""
    if reference is not None and Path(reference).expanduser().is_dir():
        return Place(str(Path(reference).expanduser()))
    store = run_store()
    run = _find_run(store, reference)
    if run is None:
        return Place(str(reference))
    if run.output_dir is None or not Path(run.output_dir).is_dir():
        raise BackendError(
            f"{run.run_id}: its output folder ({run.output_dir or 'on the cluster'}) cannot be reached from here",
            "copy it to this machine, and name the copy")
    return Place(run.output_dir, run.job_dir)


def run_trainer(verb: str, place: Place, options: Mapping[str, Any], flags: Sequence[str] = ()) -> None:
    """Run a command of the trainer in front, Ctrl-C and all; it has told its mistakes itself. Ends with its exit code,
    as launch has them."""
    argv = [sys.executable, "-m", "trainer.cli", verb, place.path]
    for name, value in {"job_dir": place.job_dir, **options}.items():
        if value is not None:
            argv.append(f"--{name.replace('_', '-')}={value}")
    code = run_in_front([*argv, *flags], env=dict(os.environ))
    if code in PASSED_ON or code == CONFIG_ERROR:
        click.get_current_context().exit(MISTAKE if code == CONFIG_ERROR else code)
    raise JobFailedError(f"the trainer ended with {code}" + _why(code))


def _why(code: int) -> str:
    return ": it was killed, perhaps for want of memory" if code == 128 + signal.SIGKILL else ""


def _find_run(store: RunStore, reference: str | None) -> Run | None:
    """None for what looks like a name on the hub."""
    if reference is None:
        return store.find(None)
    found = [run for run in store.all() if run.run_id.startswith(reference)]
    if any(run.run_id == reference for run in found) or "://" in reference:
        return store.find(reference)
    if len(found) > 1:
        raise NotFoundError(f"got {reference!r}, which is the start of {', '.join(run.run_id for run in found)}",
                            "name more of it")
    if found:
        return found[0]
    if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        return None
    raise NotFoundError(f"got {reference!r}, allowed: a folder that exists, a run, or a name on the hub (owner/name)",
                        "list the runs: launch list")
