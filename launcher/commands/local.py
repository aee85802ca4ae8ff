"""launch local."""

import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import click

from launcher.backends.registry import load_backend
from launcher.errors import JobFailedError
from launcher.services.follow import watch
from launcher.services.options import folder_options, job_options, prepared_run, run_store
from launcher.services.prepare import Request, on_this_machine
from launcher.services.resume import COMMAND, command_of, resuming
from launcher.services.submit import submit_run
from launcher.terminal import ui


@click.command("local")
@job_options
@folder_options
@click.option("--container", is_flag=True, help="In the job's image, by podman or docker.")
def command(request: Request, resume: str | None, new_folder: bool, container: bool) -> None:
    """Ctrl-C ends the job, after time for a last checkpoint, and its log is shown to the end; after a second Ctrl-C
    nobody waits for that. The job's cluster is not looked at: each of its nodes becomes a group of processes here."""
    store = run_store()
    with store.refusal_noted(request.path):
        prepared = prepared_run(on_this_machine(request, container=container), store, resume, new_folder=new_folder)
        request = dataclasses.replace(request, container=container)
        backend = load_backend("local", store, {**os.environ, COMMAND: command_of("local", request)})
        run = submit_run(prepared, backend, store, os.environ)
    again = resuming("local", request, prepared.kind, run)
    stopping = _Stopping(functools.partial(backend.cancel, run))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopping.signalled)
    for note in prepared.notes:
        ui.note(note)
    ui.note(f"run {run.run_id}")
    try:
        watch(backend, store, run, again)
    except (JobFailedError, OSError):  # cancelled; the terminal is gone
        if not stopping.asked:
            raise
    if stopping.asked:
        stopping.wait()
        if again:
            ui.note(f"stopped; to resume: {again}")
        raise KeyboardInterrupt


class _Stopping:
    """The first signal cancels the run, while its log is followed to its last line: there the trainer says what it has
    saved. The second one ends launch."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.asked = False
        self._cancel = cancel
        self._thread = threading.Thread(target=self._stop, daemon=True)

    def signalled(self, number: int, frame: object) -> None:
        """Nothing is printed here: the signal may have come in the middle of a line."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._thread.start()

    def wait(self) -> None:
        """Until nothing of the run is left."""
        self._thread.join()

    def _stop(self) -> None:
        with suppress(OSError):  # the terminal may be gone
            ui.note("stopping; press Ctrl-C again to stop at once")
        self._cancel()
