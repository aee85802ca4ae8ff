"""Options that several commands share."""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.backends.registry import BACKENDS
from launcher.errors import SpecError
from launcher.services.prepare import Request
from launcher.terminal import ui

if TYPE_CHECKING:
    from launcher.job.prepared import Prepared
    from launcher.runs.store import RunStore

Command = Callable[..., Any]


def job_options(command: Command) -> Command:
    """JOB.yaml, --set and --clusters, handed to the command as one Request."""

    @functools.wraps(command)
    def with_request(job: Path, overrides: tuple[str, ...], clusters: Path | None, **more: Any) -> Any:
        return command(Request(job, overrides, clusters), **more)

    decorated: Command = with_request
    for decorate in (
        click.option("--clusters", type=click.Path(path_type=Path),
                     help="File of cluster profiles. Default: clusters.yaml here, beside the job file, or in "
                          "~/.config/launch/."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=C",
                     help="Override a field of the job file; may be repeated."),
        click.argument("job", type=click.Path(path_type=Path), metavar="JOB.yaml"),
    ):
        decorated = decorate(decorated)
    return decorated


def folder_options(command: Command) -> Command:
    """--resume and --new, of commands that start a training."""
    resume = click.option("--resume", metavar="RUN", help="Go on in the output folder of this run, from its newest "
                          "checkpoint. RUN: an id or a handle.")
    new = click.option("--new", "new_folder", is_flag=True, help="Start over in a folder of this run's own, beside the "
                       "output_dir that the job names.")
    return resume(new(command))


def prepared_run(request: Request, store: "RunStore", resume: str | None, *, new_folder: bool) -> "Prepared":
    """The job with the output folder that --resume or --new ask for. Raises SpecError, NotFoundError."""
    from launcher.services.prepare import prepare
    from launcher.services.resume import folder_of, refuse_elsewhere

    request = dataclasses.replace(request, to_start=True)
    if resume is None:
        return prepare(dataclasses.replace(request, new_folder=new_folder), os.environ)
    if new_folder:
        raise SpecError("--resume, --new: only one of the two can be given")
    run = store.find(resume)
    prepared = prepare(dataclasses.replace(request, output_dir=folder_of(run, request)), os.environ)
    refuse_elsewhere(run, prepared)
    return prepared


class BackendName(click.ParamType):  # type: ignore[type-arg]
    """The name of a back end; those of other packages are looked for when ours do not have it."""

    name = "backend"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Our own."""
        return f"[{'|'.join(BACKENDS.own)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checked."""
        if value not in BACKENDS:
            self.fail(f"{value!r} is not one of {', '.join(BACKENDS.names())}", param, ctx)
        return value


def backend_option(help_text: str) -> Callable[[Command], Command]:
    """--backend."""
    return click.option("--backend", type=BackendName(), help=help_text)


def run_argument(command: Command) -> Command:
    """RUN: an id, its start, or a handle; the latest run when left out."""
    return click.argument("run", required=False, metavar="[RUN]")(command)


def json_option(command: Command) -> Command:
    """--json."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON, one object a line.")(command)


def yes_option(command: Command) -> Command:
    """--yes."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def agreed(question: str, *, yes: bool, again: str) -> bool:
    """Whether to go on. Raises SpecError with the command to type when nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SpecError(f"{question} There is no terminal to ask on; --yes answers without one", again)
    return ui.confirm(question)


def with_yes() -> str:
    """The command as it was typed, with --yes."""
    return shlex.join(["launch", *click.get_current_context().obj, "--yes"])


def run_store() -> "RunStore":
    """The runs of this user."""
    from launcher.runs.store import RunStore, launch_home

    return RunStore(launch_home(os.environ), typed_for)


def typed_for(run_id: str, meant: str | None = None) -> str:
    """What was typed, for this run: in place of the one that was `meant`, where one was."""
    verb, *words = click.get_current_context().obj
    words = [run_id if word == meant else word for word in words] if meant else [run_id, *words]
    return shlex.join(["launch", verb, *words])
