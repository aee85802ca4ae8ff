"""launch prune."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from launcher.backends.base import LeavesStrays, Stray
from launcher.backends.registry import BACKENDS, load_backend
from launcher.runs.store import RunStore
from launcher.services.options import agreed, json_option, run_store, yes_option
from launcher.services.prepare import named_profile
from launcher.terminal import ui

HALF_SENT = "run folder"
HALF_SENT_AGE_S = 3600


@click.command("prune")
@click.option("--cluster", metavar="NAME", help="Look there too, whether or not a run of this machine was there.")
@click.option("--clusters", type=click.Path(path_type=Path),
              help="File of cluster profiles. Default: ./clusters.yaml, then ~/.config/launch/clusters.yaml.")
@yes_option
@json_option
def command(cluster: str | None, clusters: Path | None, yes: bool, json_output: bool) -> None:
    """Looks where runs of this machine were; lists what they have left, asks, and removes it: objects with launch's
    label whose Job is gone, containers of jobs that have ended, run folders of submits that were killed half-way more
    than an hour ago. With --json it only lists, unless --yes is given too."""
    store = run_store()
    profile = named_profile(cluster, clusters, os.environ) if cluster else None
    wanted = {run.backend for run in store.all() if run.backend in BACKENDS} | ({profile.backend} if profile else set())
    backends = [load_backend(name, store, dict(os.environ)) for name in sorted(wanted)]
    found: list[tuple[LeavesStrays | None, Stray]] = [
        (backend, stray) for backend in backends if isinstance(backend, LeavesStrays)
        for stray in backend.strays(profile, ui.warn)]
    found += [(None, stray) for stray in half_sent(store, time.time())]
    _show([stray for _, stray in found], json_output=json_output)
    if not found or (json_output and not yes):
        return
    if agreed(f"remove {len(found)} of them?" if len(found) > 1 else "remove it?", yes=yes, again="launch prune --yes"):
        for backend, stray in found:
            if backend:
                backend.remove(stray)
            else:
                store.forget(stray.name)
        ui.note(f"{len(found)} removed")


def half_sent(store: RunStore, now_s: float) -> Iterator[Stray]:
    """Run folders without a run, which a submit that was killed has left; young ones may belong to one that goes on."""
    for folder in sorted(store.root.glob("*/")):
        if not (folder / "run.json").exists() and folder.stat().st_mtime < now_s - HALF_SENT_AGE_S:
            yield Stray(HALF_SENT, folder.name, str(store.root), "its submit never came to an end")


def _show(strays: list[Stray], *, json_output: bool) -> None:
    if json_output:
        for stray in strays:
            ui.as_json({key: value for key, value in dataclasses.asdict(stray).items() if key != "key"})
    elif strays:
        ui.print_table(["KIND", "NAME", "WHERE", "WHY"],
                       [[stray.kind, stray.name, stray.where, stray.why] for stray in strays])
    else:
        ui.note("nothing is left behind")
