"""How a run is, for every verb that asks. Whoever sees its end first writes it into the record, and has the secrets
removed that only a running job needs."""

import os

from launcher.backends.base import Backend, KeepsObjects
from launcher.backends.registry import load_backend
from launcher.errors import LaunchError
from launcher.runs.record import End, Run
from launcher.runs.status import JobStatus, State
from launcher.runs.store import RunStore, now
from launcher.terminal import ui


def status_of(backend: Backend, store: RunStore, run: Run) -> JobStatus:
    """What the back end says, or the record once the back end has forgotten the run or does not answer. Raises
    BackendError for one that does not answer about a run whose end nobody has seen."""
    try:
        found = backend.status(run)
    except LaunchError as error:
        if run.end is None:
            raise
        ui.warn(f"{run.run_id}: {error.message.splitlines()[0]}; this is what was seen before")
        return run.end.status
    if found.gone and run.end:
        return run.end.status
    if not run.was_sent:  # its submit may be about to start it
        return found
    if found.is_over:
        _note_end(backend, store, run, found)
    elif run.end:  # put back into the queue by hand
        store.note_end(run, None)
    return found


def state_of(store: RunStore, run: Run) -> State:
    """For lists: an end that was seen is not asked about again. Unknown, with a warning, when the back end cannot be
    asked."""
    if run.end:
        return run.end.state
    try:
        return status_of(load_backend(run.backend, store, dict(os.environ)), store, run).state
    except LaunchError as error:
        ui.warn(f"{run.run_id}: {error.message.splitlines()[0]}")
        return State.UNKNOWN


def _note_end(backend: Backend, store: RunStore, run: Run, found: JobStatus) -> None:
    """A failure is only warned about: how the run ended is what the user wants to know."""
    try:
        store.drop_secrets(run.run_id)
        end = End(found.state, found.reason, found.exit_code, found.ended_at or now())
        if store.note_end(run, end) and isinstance(backend, KeepsObjects):
            backend.drop_secrets(run)
    except (LaunchError, OSError) as error:
        ui.warn(f"{run.run_id}: {error}")
