"""Options that several commands share."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher import ui
from launcher.errors import SpecError
from launcher.prepare import Request
from launcher.spec import BACKENDS

if TYPE_CHECKING:
    from launcher.runs import RunStore

Command = Callable[..., Any]


def job_options(command: Command) -> Command:
    """JOB.yaml, --set and --clusters, handed to the command as one Request."""

    @functools.wraps(command)
    def with_request(job: Path, overrides: tuple[str, ...], clusters: Path | None, **more: Any) -> Any:
        return command(Request(job, overrides, clusters), **more)

    decorated: Command = with_request
    for decorate in (
        click.option("--clusters", type=click.Path(path_type=Path),
                     help="File of cluster profiles. Default: ./clusters.yaml, then ~/.config/launch/clusters.yaml."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=C",
                     help="Override a field of the job file; may be repeated."),
        click.argument("job", type=click.Path(path_type=Path), metavar="JOB.yaml"),
    ):
        decorated = decorate(decorated)
    return decorated


def backend_option(help_text: str) -> Callable[[Command], Command]:
    """--backend."""
    return click.option("--backend", type=click.Choice(BACKENDS), help=help_text)


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
        raise SpecError(f"{question} Got no terminal to ask on, allowed without one: --yes", again)
    return ui.confirm(question)


def run_store() -> "RunStore":
    """The runs of this user."""
    from launcher.runs import RunStore, launch_home

    return RunStore(launch_home(os.environ))
