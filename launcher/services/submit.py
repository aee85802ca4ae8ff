"""Submitting: claim a free run id, render, check, record, send. The same steps for every back end.

The record is written before anything is sent and completed afterwards, so a run can be found and cancelled whatever
happens in between:

| what happens | outcome |
|---|---|
| the same job again, also at once, by twenty processes | run ids -2, -3, ...: each its own run |
| somebody else's run has the id in the namespace | the next free id; with --run-id an error |
| Ctrl-C (or TERM, or a closed terminal) before it is sent | nothing is left; exit code 130 |
| Ctrl-C while it is sent | the answer is waited for, then the run is cancelled and forgotten; exit code 130 |
| a second Ctrl-C | stops at once; the record stays, `launch cancel RUN` removes what was sent |
| the connection is lost | what was sent is removed, nothing is left; where the cluster stays away the error names it |
| kill -9 before it is sent | a folder without a run, which `launch prune` removes |
| kill -9 while it is sent | the record stays, `launch cancel RUN` removes what was sent |
| the disk is full before it is sent | nothing is sent, nothing is left |
| the disk is full afterwards | the run is cancelled and forgotten |
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.backends.base import Backend, Submission
from launcher.errors import BackendError, LaunchError, RunIdTakenError
from launcher.job.plan import Plan
from launcher.job.prepared import Prepared
from launcher.job.rendered import Rendered
from launcher.job.secrets import secret_values
from launcher.runs.record import UNSENT, Outputs, Run
from launcher.runs.store import RunStore, now, write_whole
from launcher.services.rendering import rendered

Tell = Callable[[str], None]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def submit_run(
    prepared: Prepared, backend: Backend, store: RunStore, environ: Mapping[str, str], *,
    run_id: str | None = None, tell: Tell = lambda text: None,
) -> Run:
    """Send the job under the first free id. The module's table says what is left when it does not come to its end."""
    secrets = secret_values(prepared.job.secrets, environ)
    for note in (*prepared.notes, *backend.notes()):
        tell(note)
    tried: set[str] = set()
    with _Stops(tell) as stops:
        submit = _Submit(prepared, backend, store, secrets, stops)
        while True:
            try:
                return submit.under(run_id or prepared.base_id, tried)
            except RunIdTakenError:
                if run_id:
                    raise


class _Stops:
    """Makes TERM and HUP a KeyboardInterrupt as well, and holds the first of them back while a run is sent."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.asked = False
        self._held = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "_Stops":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def held(self) -> Iterator[None]:
        """The first stop is only noted in here; the second one stops."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def obey(self) -> None:
        """Stop now when that was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        at_once = self.asked or not self._held
        self.asked = True  # also when raised: Python drops what is raised inside a finalizer
        if at_once:
            raise KeyboardInterrupt
        self.tell("stopping as soon as it is known what was sent; again to stop at once")


@dataclass(frozen=True)
class _Submit:
    """What every attempt to send a job needs."""

    prepared: Prepared
    backend: Backend
    store: RunStore
    secrets: dict[str, str]
    stops: _Stops

    def under(self, wanted: str, tried: set[str]) -> Run:
        """One attempt, under the first free id that was not tried before."""
        run_id = None
        sending = False
        try:
            with self.stops.held():
                run_id = _claim(self.store, wanted, tried, self.prepared)
            tried.add(run_id)
            self.stops.obey()
            what, foreseen = self._recorded(run_id)
            with self.stops.held():
                self.stops.obey()
                sending = True
                run = self._sent(what, foreseen)
        except BaseException:
            if run_id and not sending:
                self.store.forget(run_id)
            raise
        if self.stops.asked:
            self._take_back(run, "interrupted")
            self.stops.obey()
        return run

    def _recorded(self, run_id: str) -> tuple[Rendered, Run]:
        """Render, ask the cluster, and write down what is about to be sent."""
        what = rendered(self.prepared, run_id)
        self.stops.tell(f"run {run_id}: checking")
        self.backend.check(what)
        folder = self.store.folder(run_id)
        write_whole(folder / f"render{what.suffix}", what.text)
        for name, text in what.plan.payload.files.items():
            write_whole(folder / name, text)
        foreseen = foreseen_run(what.plan, self.prepared.cluster, self.prepared.job_dir, self.backend.place(what))
        self.store.save(foreseen)
        return what, foreseen

    def _sent(self, what: Rendered, foreseen: Run) -> Run:
        """Send it, and complete the record. A back end that fails leaves nothing; one that was interrupted may."""
        run_id, folder = foreseen.run_id, self.store.folder(foreseen.run_id)
        submission = Submission(self.secrets, folder, self.prepared.job_dir, self.prepared.snapshot)
        try:
            sent = self.backend.submit(what, submission)
        except KeyboardInterrupt:
            self.stops.tell(f"interrupted; see what was sent: launch status {run_id}; remove it: launch cancel "
                            f"{run_id}")
            raise
        except BaseException:
            self.store.forget(run_id)
            raise
        run = foreseen.sent(sent.handle, sent.place)
        try:
            self.store.save(run)
        except LaunchError as error:
            self._take_back(run, error.message)
            raise
        return run

    def _take_back(self, run: Run, why: str) -> None:
        """Cancel a run that has just been sent, and forget it."""
        self.stops.tell(f"{run.run_id}: cancelling")
        try:
            self.backend.cancel(run)
        except (LaunchError, OSError) as error:
            raise BackendError(f"{why}, but {run.handle} was sent and could not be cancelled: {error}",
                               f"when it can be: launch cancel {run.run_id}") from error
        self.store.forget(run.run_id)


def foreseen_run(plan: Plan, cluster: str | None, job_dir: Path, place: dict[str, str]) -> Run:
    """The record before anything is sent: whole but for the handle and what only the back end can say of the place."""
    return Run(
        run_id=plan.run_id,
        name=plan.name,
        kind=plan.payload.kind,
        backend=plan.profile.backend,
        handle=f"{UNSENT}{plan.run_id}",
        cluster=cluster,
        nodes=plan.nodes,
        processes_per_node=plan.processes_per_node,
        grace_s=plan.grace_s,
        restarts=plan.restarts,
        created=now(),
        job_dir=str(job_dir),
        outputs=_outputs(plan, job_dir),
        exit_codes={str(code): meaning for code, meaning in plan.payload.exit_codes.meanings.items()},
        place=place,
    )


def _outputs(plan: Plan, job_dir: Path) -> Outputs | None:
    found = plan.payload.outputs
    if found is None:
        return None
    folder = str(job_dir / found.folder) if plan.profile.shares_folder else None
    return Outputs(found.folder, folder, found.patterns, found.owner_file)


def first_free(store: RunStore, wanted: str, tried: set[str], prepared: Prepared) -> str:
    """The first run id that is not in use and that left no output folder: a record may be gone before what its run has
    trained. Those that did are added to `tried`."""
    while True:
        run_id = store.first_free(wanted, tried)
        if not _left_folder(prepared, run_id):
            return run_id
        tried.add(run_id)


def _left_folder(prepared: Prepared, run_id: str) -> bool:
    """Whether there is a folder that would be the run's own; on a cluster's volume nobody can look."""
    if not prepared.owns_folder or not prepared.profile.shares_folder:
        return False
    outputs = prepared.payload(run_id).outputs
    return outputs is not None and os.path.lexists(prepared.job_dir / outputs.folder)


def _claim(store: RunStore, wanted: str, tried: set[str], prepared: Prepared) -> str:
    while True:
        run_id = first_free(store, wanted, tried, prepared)
        if store.claim(run_id):
            return run_id
