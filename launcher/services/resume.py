"""Going on with a run: where it has trained, and the command that does it."""

import dataclasses
import shlex
from pathlib import Path

from launcher.errors import SpecError
from launcher.job.kind import Kind, Resumable
from launcher.job.prepared import Prepared
from launcher.kinds.train.kind import CONFIG
from launcher.runs.store import Run, RunStore
from launcher.services.prepare import Request

COMMAND = "LAUNCH_COMMAND"  # how a job learns what was typed: the trainer's hints repeat it (trainer/command.py)


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


def folder_of(run: Run, store: RunStore, request: Request) -> str:
    """The output folder that a run was given, as a job in the request's folder names it. Raises SpecError for a run
    that does not train."""
    import yaml

    try:
        text = (store.folder(run.run_id) / CONFIG).read_text(encoding="utf-8")
        named = str(yaml.safe_load(text)["settings"]["output_dir"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise SpecError(f"--resume: got {run.run_id}, allowed: a run of a job with `train`",
                        "list the runs: launch list") from error
    if run.backend == "kubernetes" or Path(run.job_dir) == request.path.absolute().parent:
        return named
    return str(Path(run.job_dir) / named)


def refuse_elsewhere(run: Run, prepared: Prepared) -> None:
    """Raise SpecError when the job goes where the run's output folder is not, as far as that can be seen from here."""
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
