"""How a run is, for every verb that asks. Whoever sees its end first writes it into the record, and has the secrets
removed that only a running job needs."""

from collections.abc import Sequence

from launcher.backends.base import Backend, KeepsObjects
from launcher.errors import LaunchError
from launcher.runs.record import End, Run
from launcher.runs.status import JobStatus, State
from launcher.runs.store import RunStore, now
from launcher.services.backends import Backends
from launcher.terminal import ui


def status_of(backend: Backend, store: RunStore, run: Run) -> JobStatus:
    """What the back end says, or the record once the back end has forgotten the run or does not answer. Raises
    BackendError for one that does not answer about a run whose end nobody has seen."""
    try:
        found = backend.status(run)
    except LaunchError as error:
        if run.end is None:
            raise
        ui.warn(f"{run.run_id}: {error.message.splitlines()[0]}; this is its last known state")
        return run.end.status
    return _noted(backend, store, run, found)


def states_of(store: RunStore, runs: Sequence[Run]) -> dict[str, State]:
    """For lists, by id: an end that was seen is not asked about again. Unknown, with a warning, where a back end cannot
    be asked."""
    states = {run.run_id: run.end.state if run.end else State.UNKNOWN for run in runs}
    going = [run for run in runs if not run.end]
    backends = Backends(store)
    for name in sorted({run.backend for run in going}):
        some = [run for run in going if run.backend == name]
        try:
            backend = backends.named(name)
        except LaunchError as error:
            ui.warn(f"{', '.join(run.run_id for run in some)}: {error.message.splitlines()[0]}")
            continue
        found = backend.statuses(some, ui.warn)
        states |= {run.run_id: _noted(backend, store, run, found[run.run_id]).state for run in some}
    return states


def collect_results(store: RunStore, run: Run) -> None:
    """Keep the small files that the run has left. A failure is only warned about: they are where the run wrote them."""
    try:
        store.collect_results(run)
    except LaunchError as error:
        ui.warn(f"{run.run_id}: {error}")


def _noted(backend: Backend, store: RunStore, run: Run, found: JobStatus) -> JobStatus:
    """What was found, written into the record when it is the end."""
    if found.gone and run.end:
        return run.end.status
    if not run.was_sent:  # its submit may be about to start it
        return found
    if found.is_over:
        _note_end(backend, store, run, found)
    elif run.end:  # put back into the queue by hand
        store.note_end(run, None)
    return found


def _note_end(backend: Backend, store: RunStore, run: Run, found: JobStatus) -> None:
    """A failure is only warned about: how the run ended is what the user wants to know."""
    try:
        store.drop_secrets(run.run_id)
        end = End(found.state, found.reason, found.exit_code, found.ended_at or now())
        if store.note_end(run, end) and isinstance(backend, KeepsObjects):
            backend.drop_secrets(run)
    except (LaunchError, OSError) as error:
        ui.warn(f"{run.run_id}: {error}")
