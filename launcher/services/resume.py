"""Going on with a run: where it has trained, and the command that does it."""

import dataclasses
import shlex
from pathlib import Path

from launcher.errors import SpecError
from launcher.job.kind import Kind, Resumable
from launcher.job.prepared import Prepared
from launcher.kinds.registry import able_to
from launcher.runs.record import Run
from launcher.services.prepare import Request

COMMAND = "LAUNCH_COMMAND"  # how a job learns what was typed: the trainer's hints repeat it (trainer/config/command.py)


def command_of(verb: str, request: Request) -> str:
    """What was typed, without --resume and --new, and each field set once; quoted for a shell."""
    last = {_field(override): override for override in request.overrides}
    settings = [word for override in request.overrides if last[_field(override)] is override
                for word in ("--set", override)]
    clusters = ["--clusters", str(request.clusters)] if request.clusters else []
    backend = ["--backend", request.backend] if request.backend else []
    container = ["--container"] if request.container else []
    return shlex.join(["launch", verb, str(request.path), *settings, *clusters, *backend, *container])


def resuming(verb: str, request: Request, kind: Kind, run: Run) -> str | None:
    """What to type to go on with a run of the request; None when its kind cannot."""
    if not isinstance(kind, Resumable):
        return None
    settled = {".".join(map(str, (kind.key, *loc))) for loc in kind.settled("")}
    kept = tuple(override for override in request.overrides if _field(override) not in settled)
    return f"{command_of(verb, dataclasses.replace(request, overrides=kept))} --resume {run.run_id}"


def _field(override: str) -> str:
    return override.partition("=")[0].strip()


def folder_of(run: Run, request: Request) -> str:
    """The output folder that a run was given, as a job in the request's folder names it. Raises SpecError for a run
    that has none."""
    if run.outputs is None:
        able = " or ".join(f"`{key}`" for key in able_to(Resumable))
        raise SpecError(f"--resume: must be a run of a job with {able}, but {run.run_id} is one with `{run.kind}`",
                        "list the runs: launch list")
    if run.outputs.folder is None or Path(run.job_dir) == request.path.absolute().parent:
        return run.outputs.named
    return run.outputs.folder


def refuse_elsewhere(run: Run, prepared: Prepared) -> None:
    """Raise SpecError when the job goes where the run's output folder is not, as far as that can be seen from here."""
    if run.kind != prepared.kind.key:
        raise SpecError(f"--resume: {run.run_id} is a run of a job with `{run.kind}`, and this job has "
                        f"`{prepared.kind.key}`", "list the runs: launch list")
    there, here = (run.backend, run.cluster), (prepared.profile.backend, prepared.cluster)
    if there != here:
        raise SpecError(f"--resume: got {run.run_id}, which ran on {_place(*there)}, but this job goes to "
                        f"{_place(*here)}", "send it there, or name the folder in train.settings.output_dir")
    is_here = prepared.profile.is_one_machine and not prepared.profile.uses_image
    if is_here and not Path(run.output_dir or "").is_dir():
        raise SpecError(f"--resume: got {run.run_id}, whose output folder {run.output_dir} is gone",
                        "start a new run: leave --resume out")


def _place(backend: str, cluster: str | None) -> str:
    return f"cluster {cluster}" if cluster else f"back end {backend}"
