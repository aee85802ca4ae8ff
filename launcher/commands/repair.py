"""launch repair, and what a follower does about lost machines."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from launcher import ui
from launcher.backends.base import Backend, LostNode
from launcher.backends.registry import load_backend
from launcher.commands.options import agreed, run_argument, run_store, yes_option
from launcher.errors import BackendError
from launcher.runs import Run

LOOK_EVERY_S = 10


@click.command("repair")
@run_argument
@yes_option
def command(run: str | None, yes: bool) -> None:
    """Kubernetes: the pod of a lost machine is given up, so that it is made anew on another one; asks before, unless
    the cluster's profile says `repair: auto`. Make sure that the machine is really off: one that is only cut off goes
    on writing. Slurm starts such a job again by itself."""
    store = run_store()
    found = store.find(run)
    backend = load_backend(found.backend, store, dict(os.environ))  # type: ignore[arg-type]
    lost = backend.lost(found)
    if not lost:
        ui.note(f"{found.run_id}: no node of it is on a lost machine")
        return
    for node in lost:
        ui.note(_lost(found, node))
    yes = yes or found.repair == "auto"
    if agreed(f"give up {_nodes(lost)} of {found.run_id}?", yes=yes, again=f"launch repair --yes {found.run_id}"):
        _repair(backend, found, lost)


@contextmanager
def minding_lost_nodes(backend: Backend, run: Run, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """While a run is followed: tell on stderr of each machine that is lost, and repair where the profile allows it.

    In a thread, since a lost machine is silent and its peers wait for it: no line ever comes to look in between.
    """
    stop = threading.Event()
    threading.Thread(target=_mind, args=(backend, run, every_s, stop), name="lost-nodes", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _mind(backend: Backend, run: Run, every_s: float, stop: threading.Event) -> None:
    told: set[LostNode] = set()
    while not stop.wait(every_s):
        try:
            new = [node for node in backend.lost(run) if node not in told]
            for node in new:
                hint = "" if run.repair == "auto" else f"; if it stays away: launch repair {run.run_id}"
                ui.note(_lost(run, node) + hint)
            told.update(new)
            if new and run.repair == "auto":
                _repair(backend, run, new)
        except BackendError as error:
            ui.warn(f"{run.run_id}: lost machines were not looked after: {error.message}")


def _repair(backend: Backend, run: Run, lost: list[LostNode]) -> None:
    backend.repair(run, lost)
    ui.note(f"{run.run_id}: {_nodes(lost)} given up, to be started elsewhere")


def _nodes(lost: list[LostNode]) -> str:
    return f"node{'s' if len(lost) > 1 else ''} {', '.join(str(node.node) for node in lost)}"


def _lost(run: Run, node: LostNode) -> str:
    return f"{run.run_id}: node {node.node}: its machine {node.host} is lost"
