"""Removing runs that have ended: which may go, and all that launch keeps of one. Output folders are never touched."""

import datetime
from collections.abc import Iterator

from launcher.backends.base import Backend, KeepsObjects
from launcher.errors import BackendError, LaunchError, NotFoundError
from launcher.runs.record import End, Run
from launcher.runs.store import RunStore
from launcher.services.backends import Backends
from launcher.services.ends import status_of
from launcher.terminal import ui

SUBMIT_LASTS = datetime.timedelta(hours=1)


def removable(store: RunStore, backends: Backends, references: tuple[str, ...]) -> list[Run]:
    """The runs that are meant, each once. Raises NotFoundError or BackendError that names every one that is unknown or
    has not ended, before anything is removed."""
    found: dict[str, Run] = {}
    problems: list[LaunchError] = []
    for reference in references:
        try:
            run = store.find(reference)
            _require_end(store, backends.of(run), run)
            found[run.run_id] = run
        except LaunchError as error:
            problems.append(error)
    if problems:
        kind = NotFoundError if all(isinstance(error, NotFoundError) for error in problems) else BackendError
        hints = dict.fromkeys(error.hint for error in problems if error.hint)
        raise kind("\n".join(error.message for error in problems), "; ".join(hints))
    return list(found.values())


def remove_run(store: RunStore, backend: Backend, run: Run) -> None:
    """What its cluster keeps of it, and then what this machine does. Raises BackendError when the cluster refuses; the
    record stays then."""
    if isinstance(backend, KeepsObjects):
        backend.discard(run)
    store.remove(run.run_id)


def ended_before(store: RunStore, backends: Backends, moment: datetime.datetime) -> Iterator[tuple[Run, End]]:
    """Runs that ended before that, each with its end. One that cannot be asked about is only warned about."""
    for run in store.all():
        if datetime.datetime.fromisoformat(run.created) >= moment:
            continue
        try:
            status_of(backends.of(run), store, run)
        except LaunchError as error:
            ui.warn(f"{run.run_id}: {error.message.splitlines()[0]}")
            continue
        end = store.find(run.run_id).end
        if end and datetime.datetime.fromisoformat(end.at) < moment:
            yield run, end


def _require_end(store: RunStore, backend: Backend, run: Run) -> None:
    status = status_of(backend, store, run)
    if not status.is_over:
        raise BackendError(f"{run.run_id} has not ended: it is {status.state}", f"launch cancel {run.run_id}")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(run.created)
    if not run.was_sent and not status.state.ended and age < SUBMIT_LASTS:
        raise BackendError(f"{run.run_id} is just being sent, or its submit was killed less than an hour ago",
                           f"if it was: launch cancel {run.run_id}, and remove it in an hour")
