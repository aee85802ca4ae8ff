"""What a follower, and `launch repair`, do about the machines of a run that are lost."""

from launcher.backends.base import Backend, LostNode, RepairsNodes
from launcher.errors import BackendError
from launcher.runs.record import Run
from launcher.terminal import ui


class LostNodes:
    """Those of a run that is followed: each is reported once on stderr, and repaired where the profile allows it."""

    def __init__(self, backend: Backend, run: Run) -> None:
        self.backend = backend if isinstance(backend, RepairsNodes) else None
        self.run = run
        self._reported: set[LostNode] = set()

    def look(self) -> None:
        """Look after them. A failure is only warned about: the follower itself tells what is wrong."""
        if self.backend:
            try:
                self._look(self.backend)
            except BackendError as error:
                ui.warn(f"{self.run.run_id}: lost machines could not be checked: {error.message}")

    def _look(self, backend: RepairsNodes) -> None:
        unasked = backend.repairs_unasked(self.run)
        new = [node for node in backend.lost(self.run) if node not in self._reported]
        for node in new:
            hint = "" if unasked else f"; if it does not come back: launch repair {self.run.run_id}"
            ui.note(lost_words(self.run, node) + hint)
        self._reported.update(new)
        if new and unasked:
            repair_nodes(backend, self.run, new)


def repair_nodes(backend: RepairsNodes, run: Run, lost: list[LostNode]) -> None:
    """Give up what ran there, and tell of it."""
    backend.repair(run, lost)
    ui.note(f"{run.run_id}: {node_words(lost)} given up, to be restarted on another machine")


def node_words(lost: list[LostNode]) -> str:
    """`node 3`, `nodes 3, 4`."""
    return f"node{'s' if len(lost) > 1 else ''} {', '.join(str(node.node) for node in lost)}"


def lost_words(run: Run, node: LostNode) -> str:
    """A line that tells of a lost machine."""
    return f"{run.run_id}: node {node.node}: its machine {node.host} is lost"
