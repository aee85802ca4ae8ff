"""Jobs, profiles and plans from plain values, as launch makes them of files."""

from pathlib import Path
from typing import Any

from launcher.backends.registry import BACKENDS
from launcher.job.plan import Plan, plan_run
from launcher.job.prepared import Prepared
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.job.spec import JobSpec
from launcher.services.job_model import job_model, kind_of


def job_of(values: dict[str, Any]) -> JobSpec:
    """A checked job."""
    return job_model(values).model_validate(values)


def profile_of(values: dict[str, Any]) -> Profile:
    """A checked profile."""
    return BACKENDS.load(values["backend"]).profile_model().model_validate(values)


def plan_of(job: dict[str, Any], profile: dict[str, Any], *, run_id: str = "demo-0123abcd", new_folder: bool = False,
            **code: Any) -> Plan[Any]:
    """The plan of a job; `code`: code_digest, code_archive."""
    spec = job_of(job)
    prepared = Prepared(spec, kind_of(spec), Path("/job"), profile_of(profile), None, run_id, None, new_folder)
    return plan_run(spec, prepared.profile, prepared.payload(run_id), run_id=run_id, **code)


def rendered(plan: Plan[Any]) -> Rendered:
    """What would be sent."""
    return BACKENDS.load(plan.profile.backend).rendered(plan)
