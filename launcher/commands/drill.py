"""launch drill."""

import dataclasses
import os
import shutil
import signal
from typing import Any

import click

from launcher.backends.base import Backend, InjectsFaults
from launcher.backends.registry import load_backend
from launcher.errors import BackendError, JobFailedError, SpecError
from launcher.job.prepared import Prepared
from launcher.kinds.train.drill import KINDS, Drill, Kind, drill_overrides, plan_drill
from launcher.kinds.train.drill_check import Check, check_record, steps_lost
from launcher.kinds.train.kind import Train
from launcher.runs.record import Run
from launcher.runs.store import RunStore
from launcher.services.drill import Timeline, run_drill
from launcher.services.ends import status_of
from launcher.services.options import backend_option, job_options, json_option, run_store
from launcher.services.prepare import Request, checked_run_id, prepare
from launcher.services.submit import submit_run
from launcher.terminal import ui


@click.command("drill")
@click.argument("kind", type=click.Choice(KINDS))
@job_options
@backend_option("Drill on this back end with plain defaults. Default: the job's cluster.")
@click.option("--run-id", help="Name the run. Default: the job's name and a hash; -2, -3, ... when it is taken.")
@click.option("--seed", type=click.IntRange(min=0), help="The moment of the fault is drawn from it. Default: a "
              "new one.")
@click.option("--rank", type=click.IntRange(min=0), help="The rank that is hit. Default: drawn from the seed.")
@json_option
def command(request: Request, backend: str | None, run_id: str | None, **more: Any) -> None:
    """Runs the job short (20 steps, a save every 5, unless --set says otherwise) in an output folder of its own,
    preempts a node or kills a rank after a save, waits for the end, and checks in the log that training went on where
    it stopped. Exit code 0 when every check is met, else 5. The job gets no restart for a preemption and one for a
    killed rank: that it ends well proves that no more were spent. Ctrl-C ends the job."""
    kind: Kind = more["kind"]
    store = run_store()
    with store.refusal_noted(request.path):
        prepared = _prepared(dataclasses.replace(request, backend=backend), kind)
        drill = plan_drill(kind, prepared.job, prepared.plan(), seed=more["seed"], rank=more["rank"])
        target = load_backend(prepared.profile.backend, store, dict(os.environ))
        if not isinstance(target, InjectsFaults):
            raise BackendError(f"back end {prepared.profile.backend} cannot inject faults")
        run = submit_run(prepared, target, store, os.environ, run_id=checked_run_id(run_id), tell=ui.note)
    timeline, state = _carried_out(drill, target, store, run)
    checks = check_record(timeline.record, drill.expected, state=state)
    _report(drill, run, timeline, checks, json_lines=more["json_output"])


def _prepared(request: Request, kind: Kind) -> Prepared:
    """The user's own file is checked first, so that its mistakes are told as it stands."""
    given = prepare(request, os.environ)
    if not isinstance(given.kind, Train):
        raise SpecError(f"a drill checks steps and rows, so it takes a job with `{Train.key}`, not with "
                        f"`{given.kind.key}`")
    own = drill_overrides(kind, given.job, (*given.job.mounts, *given.profile.mounts), request.overrides)
    return prepare(dataclasses.replace(request, overrides=own), os.environ)


def _carried_out(drill: Drill, target: Backend, store: RunStore, run: Run) -> tuple[Timeline, str]:
    """What happened, and the state the run ended in. Whatever goes wrong on the way, the job is ended."""
    assert isinstance(target, InjectsFaults)  # noqa: S101
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ui.note(f"run {run.run_id}: {drill.kind} of {drill.where} after step {drill.moment.step} of "
            f"{drill.expected.max_steps} (--seed {drill.seed})")
    try:
        timeline = run_drill(drill, target, run, target, tell=ui.note)
    except BaseException:
        target.cancel(run)
        raise
    finally:
        if run.output_dir:  # a folder that only this drill wrote to
            shutil.rmtree(run.output_dir, ignore_errors=True)
    return timeline, status_of(target, store, run).state


def _report(drill: Drill, run: Run, timeline: Timeline, checks: list[Check], *, json_lines: bool) -> None:
    """The report on stdout; raises JobFailedError with what is wrong."""
    wrong = [f"{check.name}: {check.seen}" for check in checks if not check.ok]
    waited_s, lost = timeline.recovered_s and round(timeline.recovered_s, 1), steps_lost(timeline.record)
    if json_lines:
        ui.as_json({"run": run.run_id, "drill": drill.kind, "where": drill.where, "seed": drill.seed,
                    "step": drill.moment.step, "recovered_s": waited_s, "steps_lost": lost, "ok": not wrong,
                    "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        ui.print_table(["CHECK", "SEEN", "OK"],
                       [[check.name, check.seen, "yes" if check.ok else "no"] for check in checks])
    if wrong:
        raise JobFailedError("\n".join(wrong), f"read the log: launch logs {run.run_id}")
    ui.note(f"passed: training went on after {waited_s} s; steps trained again: {lost}")
