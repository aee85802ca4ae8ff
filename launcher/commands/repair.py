"""launch repair."""

import os

import click

from launcher.backends.base import RepairsNodes
from launcher.backends.registry import load_backend
from launcher.services.lost_nodes import lost_words, node_words, repair_nodes
from launcher.services.options import agreed, run_argument, run_store, yes_option
from launcher.terminal import ui


@click.command("repair")
@run_argument
@yes_option
def command(run: str | None, yes: bool) -> None:
    """Kubernetes: the pod of a lost machine is given up, so that it is created again on another one; asks first, unless
    the cluster's profile says `repair: auto`. Make sure that the machine is really off: one that is only cut off keeps
    writing. Slurm restarts such a job by itself."""
    store = run_store()
    found = store.find(run)
    backend = load_backend(found.backend, store, dict(os.environ))
    lost = backend.lost(found) if isinstance(backend, RepairsNodes) else []
    if not lost or not isinstance(backend, RepairsNodes):
        ui.note(f"{found.run_id}: no node of it is on a lost machine")
        return
    for node in lost:
        ui.note(lost_words(found, node))
    yes = yes or backend.repairs_unasked(found)
    if agreed(f"give up {node_words(lost)} of {found.run_id}?", yes=yes, again=f"launch repair --yes {found.run_id}"):
        repair_nodes(backend, found, lost)
