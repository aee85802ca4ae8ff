"""Submitting: claim a free run id, render, check, send. The same steps for every back end."""

from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.backends.base import Artifact, Backend, Submission
from launcher.plan import Plan
from launcher.prepare import Prepared
from launcher.runs import Run, RunStore, write_whole
from launcher.secrets import secret_values


def submit_run(
    prepared: Prepared, backend: Backend, store: RunStore, environ: Mapping[str, str], *,
    run_id: str | None = None, tell: Callable[[str], None] = lambda text: None,
) -> Run:
    """Send the job. Nothing stays behind when it fails, or on Ctrl-C before it was sent."""
    secrets = secret_values(prepared.job.secrets, environ)
    run_id = _claim(store, run_id or prepared.base_id)
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
        run = _with_output(run, prepared)
        store.save(run)
        return run
    finally:
        if not sent:
            store.forget(run_id)


def rendered(prepared: Prepared, backend: Backend, run_id: str) -> tuple[Plan, Artifact]:
    """The plan and what would be sent under this run id."""
    plan = prepared.plan(run_id)
    return plan, backend.render(plan)


def _claim(store: RunStore, wanted: str) -> str:
    while True:
        run_id = store.first_free(wanted)
        if store.claim(run_id):
            return run_id


def _with_output(run: Run, prepared: Prepared) -> Run:
    """Note where the trainer writes, when that is a folder this machine can see."""
    import dataclasses

    if prepared.job.train is None or run.backend == "kubernetes":
        return run
    folder = Path(prepared.job.train.settings.output_dir or f"outputs/{prepared.job.name}")
    return dataclasses.replace(run, output_dir=str(prepared.job_dir / folder), cluster=prepared.cluster)
