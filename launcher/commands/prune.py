"""launch prune."""

import dataclasses
import datetime
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from launcher.backends.base import LeavesOrphans, Orphan
from launcher.backends.registry import BACKENDS
from launcher.job.quantities import duration_s, rough_duration
from launcher.runs.store import RunStore
from launcher.services.backends import Backends
from launcher.services.options import agreed, json_option, run_store, with_yes, yes_option
from launcher.services.prepare import named_profile
from launcher.services.retention import ended_before, remove_run
from launcher.terminal import ui

RUN, CODE, HALF_SENT = "run", "code", "run folder"
HALF_SENT_AGE_S = 3600


def _ago(context: click.Context, option: click.Parameter, text: str | None) -> datetime.datetime | None:
    try:
        return None if text is None else datetime.datetime.now(datetime.UTC) - datetime.timedelta(
            seconds=duration_s(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"must be a duration such as 30d or 12h, not {text!r}") from error


@click.command("prune")
@click.option("--cluster", metavar="NAME", help="Look there too, whether or not a run of this machine was there.")
@click.option("--clusters", type=click.Path(path_type=Path),
              help="File of cluster profiles. Default: clusters.yaml here, or in ~/.config/launch/.")
@click.option("--older-than", metavar="TIME", callback=_ago,
              help="Runs that ended longer ago than this, too: 30d, 12h.")
@yes_option
@json_option
def command(cluster: str | None, clusters: Path | None, older_than: datetime.datetime | None, yes: bool,
            json_output: bool) -> None:
    """Looks where runs of this machine were; lists what they have left, asks, and removes it: objects with launch's
    label whose Job is gone, containers of jobs that have ended, run folders of submits that were killed half-way more
    than an hour ago, code that no run uses. With --older-than also runs, as `launch rm` does: their output folders
    stay. With --json it only lists, unless --yes is given too."""
    store = run_store()
    profile = named_profile(cluster, clusters, os.environ) if cluster else None
    wanted = {run.backend for run in store.all() if run.backend in BACKENDS} | ({profile.backend} if profile else set())
    backends = Backends(store)
    warn = functools.cache(ui.warn)  # several back ends may meet the same trouble
    found: list[tuple[LeavesOrphans | None, Orphan]] = [
        (backend, orphan) for backend in map(backends.named, sorted(wanted)) if isinstance(backend, LeavesOrphans)
        for orphan in backend.orphans(profile, warn)]
    found += [(None, orphan) for orphan in half_sent(store, time.time())]
    found += [(None, Orphan(CODE, name, str(store.code.root), "no run uses it")) for name in store.code.unused()]
    found += [(None, orphan) for orphan in old_runs(store, backends, older_than)]
    _show([orphan for _, orphan in found], json_output=json_output)
    if not found or (json_output and not yes):
        return
    if agreed(f"remove {len(found)} of them?" if len(found) > 1 else "remove it?", yes=yes, again=with_yes()):
        for backend, orphan in found:
            if backend:
                backend.remove(orphan)
            elif orphan.kind == RUN:
                run = store.find(orphan.name)
                remove_run(store, backends.of(run), run)
            elif orphan.kind == HALF_SENT:
                store.forget(orphan.name)
        store.code.sweep()
        ui.note(f"{len(found)} removed")


def half_sent(store: RunStore, now_s: float) -> Iterator[Orphan]:
    """Run folders without a run, which a submit that was killed has left; young ones may belong to one that goes on."""
    for folder in sorted(store.root.glob("*/")):
        if not (folder / "run.json").exists() and folder.stat().st_mtime < now_s - HALF_SENT_AGE_S:
            yield Orphan(HALF_SENT, folder.name, str(store.root), "its submit was never completed")


def old_runs(store: RunStore, backends: Backends, moment: datetime.datetime | None) -> Iterator[Orphan]:
    """Runs that ended before that; none without a moment."""
    for run, end in ended_before(store, backends, moment) if moment else ():
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(end.at)
        yield Orphan(RUN, run.run_id, run.cluster or run.backend,
                    f"it ended {rough_duration(age.total_seconds())} ago: {end.state}")


def _show(orphans: list[Orphan], *, json_output: bool) -> None:
    if json_output:
        for orphan in orphans:
            ui.as_json({key: value for key, value in dataclasses.asdict(orphan).items() if key != "key"})
    elif orphans:
        ui.print_table(["KIND", "NAME", "WHERE", "WHY"],
                       [[orphan.kind, orphan.name, orphan.where, orphan.why] for orphan in orphans])
    else:
        ui.note("nothing to remove")
