"""What a follower, and `launch repair`, do about the machines of a run that are lost."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.backends.base import Backend, LostNode, RepairsNodes
from launcher.errors import BackendError
from launcher.runs.record import Run
from launcher.terminal import ui

LOOK_EVERY_S = 10


@contextmanager
def minding_lost_nodes(backend: Backend, run: Run, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """While a run is followed: tell on stderr of each machine that is lost, and repair where the profile allows it.

    In a thread, since a lost machine is silent and its peers wait for it: no line ever comes to look in between.
    """
    stop = threading.Event()
    if isinstance(backend, RepairsNodes):
        threading.Thread(target=_mind, args=(backend, run, every_s, stop), name="lost-nodes", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _mind(backend: RepairsNodes, run: Run, every_s: float, stop: threading.Event) -> None:
    told: set[LostNode] = set()
    unasked = backend.repairs_unasked(run)
    while not stop.wait(every_s):
        try:
            new = [node for node in backend.lost(run) if node not in told]
            for node in new:
                hint = "" if unasked else f"; if it stays away: launch repair {run.run_id}"
                ui.note(lost_words(run, node) + hint)
            told.update(new)
            if new and unasked:
                repair_nodes(backend, run, new)
        except BackendError as error:
            ui.warn(f"{run.run_id}: lost machines were not looked after: {error.message}")


def repair_nodes(backend: RepairsNodes, run: Run, lost: list[LostNode]) -> None:
    """Give up what ran there, and tell of it."""
    backend.repair(run, lost)
    ui.note(f"{run.run_id}: {node_words(lost)} given up, to be started elsewhere")


def node_words(lost: list[LostNode]) -> str:
    """`node 3`, `nodes 3, 4`."""
    return f"node{'s' if len(lost) > 1 else ''} {', '.join(str(node.node) for node in lost)}"


def lost_words(run: Run, node: LostNode) -> str:
    """A line that tells of a lost machine."""
    return f"{run.run_id}: node {node.node}: its machine {node.host} is lost"
