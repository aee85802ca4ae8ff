"""Submitting: claim a free run id, render, check, send. The same steps for every back end."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.backends.base import Artifact, Backend, Submission
from launcher.errors import RunIdTakenError
from launcher.plan import Plan
from launcher.prepare import Prepared
from launcher.runs import Run, RunStore, write_whole
from launcher.secrets import secret_values


def submit_run(
    prepared: Prepared, backend: Backend, store: RunStore, environ: Mapping[str, str], *,
    run_id: str | None = None, tell: Callable[[str], None] = lambda text: None,
) -> Run:
    """Send the job under the first free id. Nothing stays behind when it fails, or on Ctrl-C before it was sent."""
    secrets = secret_values(prepared.job.secrets, environ)
    taken: set[str] = set()
    while True:
        claimed = _claim(store, run_id or prepared.base_id, taken)
        try:
            return _submit_as(claimed, prepared, backend, store, secrets, tell)
        except RunIdTakenError:
            if run_id:
                raise
            taken.add(claimed)


def _submit_as(
    run_id: str, prepared: Prepared, backend: Backend, store: RunStore, secrets: dict[str, str],
    tell: Callable[[str], None],
) -> Run:
    sent = False
    try:
        plan, artifact = rendered(prepared, backend, run_id)
        tell(f"run {run_id}: checking")
        backend.check(plan, artifact)
        folder = store.folder(run_id)
        write_whole(folder / f"render{artifact.suffix}", artifact.text)
        if plan.train_yaml:
            write_whole(folder / "train.yaml", plan.train_yaml)
        run = backend.submit(plan, artifact, Submission(secrets, folder, prepared.job_dir, prepared.snapshot))
        sent = True
        run = _with_place(run, prepared, plan)
        store.save(run)
        return run
    finally:
        if not sent:
            store.forget(run_id)


def rendered(prepared: Prepared, backend: Backend, run_id: str) -> tuple[Plan, Artifact]:
    """The plan and what would be sent under this run id."""
    plan = prepared.plan(run_id)
    return plan, backend.render(plan)


def _claim(store: RunStore, wanted: str, taken: set[str]) -> str:
    while True:
        run_id = store.first_free(wanted, taken)
        if store.claim(run_id):
            return run_id


def _with_place(run: Run, prepared: Prepared, plan: Plan) -> Run:
    """Note the cluster, its ranks, and where the trainer writes when that is a folder this machine can see."""
    run = dataclasses.replace(run, cluster=prepared.cluster, processes_per_node=plan.processes_per_node)
    if prepared.job.train is None or run.backend == "kubernetes":
        return run
    folder = Path(prepared.job.train.settings.output_dir or f"outputs/{prepared.job.name}")
    return dataclasses.replace(run, output_dir=str(prepared.job_dir / folder))
