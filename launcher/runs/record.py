"""The record of a run, `run.json`: all that a verb needs to find, follow, judge and end it. Nothing else is read back
for that, neither the script nor the manifest that was sent."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from launcher.runs.status import JobStatus, State

UNSENT = "unsent://"


@dataclass(frozen=True)
class Outputs:
    """What a run leaves. `named`: its folder as the job names it; `folder`: the same where this machine can see it, an
    absolute path, else None; `patterns`, `owner_file`: as in launcher/job/payload.py."""

    named: str
    folder: str | None
    patterns: tuple[str, ...]
    owner_file: str | None


@dataclass(frozen=True)
class End:
    """How a run ended; unknown when its back end forgot it unseen. `at`: when, as far as the back end can tell, else
    when that was first seen."""

    state: State
    reason: str | None
    exit_code: int | None
    at: str

    @property
    def status(self) -> JobStatus:
        """The same as a status, without nodes: nobody knows of them any more."""
        return JobStatus(self.state, self.reason, self.exit_code, ended_at=self.at, gone=not self.state.ended)


@dataclass(frozen=True)
class Run:
    """One launched job. `handle`: its address; `job_dir`: the job file's folder; `exit_codes`: what codes of this kind
    of job mean; `place`: what its back end, and nobody else, needs to find it. Moments are in UTC."""

    run_id: str
    name: str
    kind: str
    backend: str
    handle: str
    cluster: str | None
    nodes: int
    processes_per_node: int
    grace_s: int
    restarts: int
    created: str
    job_dir: str
    outputs: Outputs | None
    exit_codes: dict[str, str]
    place: dict[str, str] = field(default_factory=dict)
    end: End | None = None

    @property
    def output_dir(self) -> str | None:
        """The output folder where this machine can see it."""
        return self.outputs.folder if self.outputs else None

    @property
    def was_sent(self) -> bool:
        """Whether its submit came to an end."""
        return not self.handle.startswith(UNSENT)

    def sent(self, handle: str, place: dict[str, str]) -> "Run":
        """The record completed with what only the back end knew."""
        return replace(self, handle=handle, place={**self.place, **place})


def record_text(run: Run) -> str:
    """The record as JSON."""
    return _adapter().dump_json(run, indent=1).decode() + "\n"  # type: ignore[no-any-return]


def read_record(text: bytes, run_id: str) -> Run:
    """A run; fields that a newer launch has added are left out. Raises ValueError with the reason when the text is not
    the record of that run."""
    import pydantic

    try:
        run: Run = _adapter().validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise ValueError(_trouble(found)) from None
    if run.run_id != run_id:
        raise ValueError(_of_another(["run_id"]))
    return run


@cache
def _adapter() -> Any:
    import pydantic

    return pydantic.TypeAdapter(Run)


def _trouble(errors: list[Any]) -> str:
    if errors[0]["type"] == "json_invalid":
        return "is damaged: it is not JSON"
    if not errors[0]["loc"]:
        return "is damaged: it is not a run record"
    return _of_another(dict.fromkeys(str(error["loc"][0]) for error in errors))


def _of_another(fields: Any) -> str:
    return f"is not of this run, or of another version of launch ({', '.join(fields)})"
