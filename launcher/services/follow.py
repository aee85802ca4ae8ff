"""Following a run to its end, for `local` and `submit --follow`, and telling what its lines cannot say, for `logs -f`,
too."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.backends.base import Backend
from launcher.errors import JobFailedError, LaunchError
from launcher.logs.line import LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State
from launcher.runs.store import RunStore
from launcher.services.ends import collect_results, status_of
from launcher.services.lost_nodes import LostNodes
from launcher.terminal import ui

PENDING_LOOK_S, RUNNING_LOOK_S = 2.0, 10.0
WRONG_CONFIG = 78  # trainer/errors.py: the same job would fail again


def watch(backend: Backend, store: RunStore, run: Run, again: str | None = None) -> JobStatus:
    """Show the run until it ends. `again`: the command that goes on with it, if it trains. Raises JobFailedError when
    it failed or was cancelled."""
    query = LogQuery(follow=True, live=ui.is_terminal(sys.stderr))
    with watched(backend, run):
        ui.print_logs(backend.logs(run, query), nodes=run.nodes, stream=sys.stderr, bar=run.name)
    status = status_of(backend, store, run)
    collect_results(store, run)
    if status.state is not State.SUCCEEDED:
        raise JobFailedError(f"{run.run_id} {status.state}: {status.reason or 'no reason given'}",
                             f"read it again: launch logs --tail 50 {run.run_id}" + _going_on(again, status))
    ui.note(f"{run.run_id} succeeded; its files: {store.folder(run.run_id)}")
    if again and run.output_dir and Path(run.output_dir).is_dir():  # a training, whose result this machine sees
        ui.note(f"results: {run.output_dir}")
        ui.note(f"chat with the result: launch chat {run.run_id}")
    return status


def _going_on(again: str | None, status: JobStatus) -> str:
    return f"; resume it: {again}" if again and status.exit_code != WRONG_CONFIG else ""


@contextmanager
def watched(backend: Backend, run: Run) -> Iterator[None]:
    """Meanwhile it is said on stderr why the run is pending, each reason once, and which of its machines are lost."""
    stop = threading.Event()
    threading.Thread(target=_watch, args=(backend, run, stop), name="watch", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _watch(backend: Backend, run: Run, stop: threading.Event) -> None:
    """In a thread: a run that waits, or has lost a machine, is silent, so no line ever comes to look in between."""
    told, state = None, State.PENDING
    lost = LostNodes(backend, run)
    while not stop.is_set() and not state.ended:
        try:
            status = backend.status(run)
        except LaunchError:  # the follower itself tells what is wrong
            status = JobStatus(state)
        state = status.state
        if state is State.PENDING and status.reason and status.reason != told and not stop.is_set():
            told = status.reason
            ui.note(f"{run.run_id} is pending: {told}")
        if not state.ended:
            lost.look()
        stop.wait(PENDING_LOOK_S if state is State.PENDING else RUNNING_LOOK_S)
