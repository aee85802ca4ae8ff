"""From a job file to a Plan: read it, find its cluster, take the code snapshot, settle the run id."""

import dataclasses
import difflib
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SpecError
from launcher.job.code.snapshot import take_snapshot
from launcher.job.kind import Kind, Resumable
from launcher.job.load import Document, Loc, dotted, load_profiles, read_document
from launcher.job.names import default_run_id, is_run_id
from launcher.job.plan import misfits
from launcher.job.prepared import Prepared
from launcher.job.profile import Profile
from launcher.job.secrets import Leak, SecretFoundError, find_leaks, redact, token_shape
from launcher.job.spec import JobSpec
from launcher.kinds.registry import able_to
from launcher.services.inputs import input_problems
from launcher.services.job_model import check_job, check_profile, default_profile, kind_of


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line. `output_dir`: of the run that is to be gone on with; `new_folder`: one of
    its own for the run, whatever the job names; `to_start`: what the job reads must be here, if it runs here."""

    path: Path
    overrides: tuple[str, ...] = ()
    clusters: Path | None = None
    backend: str | None = None
    container: bool = False
    output_dir: str | None = None
    new_folder: bool = False
    to_start: bool = False


def on_this_machine(request: Request, *, container: bool = False) -> Request:
    """The same job without its cluster."""
    overrides = (*request.overrides, "cluster=null")
    return dataclasses.replace(request, overrides=overrides, backend="local", container=container)


def prepare(request: Request, environ: Mapping[str, str]) -> Prepared:
    """Read and check everything. Raises SpecError with every mistake at once, but SecretFoundError before any of them:
    other messages show what was given."""
    document = read_document(request.path, request.overrides)
    _refuse_secrets(document, request.overrides)
    cluster, profile, problems = _profile(document, request, environ)
    if profile and request.container:
        profile = _with_container(profile)
    if profile:
        problems += [f"{document.at(loc)}{text}"
                     for loc, text in misfits(document.values, profile, cluster or "")]
    job_dir = request.path.absolute().parent
    if profile and request.to_start:
        problems += input_problems(document, job_dir, profile)
    job = check_job(document, [*problems, *_code_problems(document, job_dir)])
    if profile is None:
        raise SpecError("\n".join(problems))  # never reached: a missing profile is among the problems
    kind = kind_of(job)
    job = _in_folder(job, kind, request, document)
    snapshot = take_snapshot((job_dir / job.code).resolve()) if job.code else None
    digest = snapshot.digest if snapshot else None
    content = json.dumps([job, profile, digest], default=dict)  # as model_dump, without building its serializers
    run_id = default_run_id(job.name, content)
    return Prepared(job, kind, job_dir, profile, snapshot, run_id, cluster, request.new_folder)


def named_profile(cluster: str, clusters: Path | None, environ: Mapping[str, str]) -> Profile:
    """A profile by its name. Raises SpecError."""
    try:
        return _find_profile(cluster, _clusters_files(Request(Path(), clusters=clusters), environ))
    except LookupError as error:
        raise SpecError(f"--cluster: {error.args[0]}") from error


def checked_run_id(text: str | None) -> str | None:
    """A run id from the command line. Raises SpecError."""
    if text is not None and not is_run_id(text):
        raise SpecError(f"--run-id: must be lower-case letters, digits and '-', 53 characters at most, not {text!r}")
    return text


def _in_folder(job: JobSpec, kind: Kind, request: Request, document: Document) -> JobSpec:
    """The job with the output folder that the command line asks for; what was left there is gone on with. Raises
    SpecError for a job that has none, and for a --set that asks for something else."""
    if request.output_dir is None and not request.new_folder:
        return job
    if not isinstance(kind, Resumable):
        able = " or ".join(able_to(Resumable))
        raise SpecError(f"--resume, --new: the job has a section `{kind.key}`, and only jobs with `{able}` have an "
                        "output folder")
    if request.output_dir is None:
        return job
    settled = {(kind.key, *loc): value for loc, value in kind.settled(request.output_dir).items()}
    if problems := list(_contradictions(settled, job, document)):
        raise SpecError("\n".join(problems), "leave that --set out; for a folder of its own: --new instead of --resume")
    return job.model_copy(update={kind.key: kind.going_on(job.section, request.output_dir)})


def _contradictions(settled: Mapping[Loc, str], job: JobSpec, document: Document) -> Iterator[str]:
    """Where a --set asks for something else than what is settled. What the file says is for runs that start over."""
    job_dir = Path(document.source).absolute().parent
    for loc, value in settled.items():
        given, place = operator.attrgetter(".".join(map(str, loc)))(job), document.place(loc)
        same = given is None or os.path.normpath(job_dir / given) == os.path.normpath(job_dir / value)
        if place.startswith("--set") and not same:
            yield f"{place}: {dotted(loc)}: is {given}, but --resume goes on with {value}"


def _with_container(profile: Profile) -> Profile:
    """This machine's profile, with a runtime that is here."""
    if profile.uses_image:
        return profile
    from launcher.backends.processes import has_command

    runtime = "podman" if has_command("podman") or not has_command("docker") else "docker"
    return profile.model_copy(update={"container_runtime": runtime})


def _code_problems(document: Document, job_dir: Path) -> list[str]:
    code = document.values.get("code")
    if not isinstance(code, str) or _is_folder(job_dir / code):
        return []
    return [f"{document.at(('code',))}no such folder: {job_dir / code}"]


def _refuse_secrets(document: Document, overrides: Sequence[str] = ()) -> None:
    """Raise SecretFoundError when a value is a secret. Overrides that could not be applied are looked at as text."""
    leaks = [(document.place(leak.loc), leak) for leak in find_leaks(document.values)]
    if not leaks:
        shapes = [(f"--set {override}", shape) for override in overrides if (shape := token_shape(override))]
        leaks = [(place, Leak((), f"{shape.kind} ({shape.prefix}…)", shape.variable)) for place, shape in shapes]
    if leaks:
        name = leaks[0][1].variable
        raise SecretFoundError(
            "\n".join(_leak_line(place, leak) for place, leak in leaks),
            f"take it out, set it in your shell (read -rs {name} && export {name}), put `secrets: [{name}]` into the "
            "job; if the file was shared, revoke the old value")


def _leak_line(place: str, leak: Leak) -> str:
    if place.startswith("--set"):
        place = f"{place.partition('=')[0]}=…" if "=" in place else "--set"
    path = f"{dotted(leak.loc)}: " if leak.loc else ""
    return redact(f"{place}: {path}") + (
        f"holds {leak.found}; a job names its secrets, and never holds them: secrets: [{leak.variable}]")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _profile(
    document: Document, request: Request, environ: Mapping[str, str]
) -> tuple[str | None, Profile | None, list[str]]:
    """The cluster's name and profile, or why there is none."""
    cluster = document.values.get("cluster")
    if not isinstance(cluster, str) or not cluster:
        return None, default_profile(request.backend or "local"), []
    try:
        profile = _find_profile(cluster, _clusters_files(request, environ))
    except LookupError as error:
        return cluster, None, [f"{document.at(('cluster',))}{error.args[0]}"]
    except SecretFoundError:
        raise
    except SpecError as error:
        return cluster, None, error.message.splitlines()
    if request.backend and profile.backend != request.backend:
        return None, default_profile(request.backend), []
    return cluster, profile, []


def _find_profile(cluster: str, files: Sequence[Path]) -> Profile:
    """The profile from the first file there is. Raises LookupError with what is wrong with the name, or SpecError."""
    path = next((path for path in files if path.is_file()), None)
    if path is None and len(files) == 1:
        raise SpecError(f"{files[0]}: no such file")
    if path is None:
        raise LookupError(f"is {cluster!r}, but there is no clusters file: neither {' nor '.join(map(str, files))}")
    profiles = load_profiles(path)
    if cluster not in profiles:
        near = difflib.get_close_matches(cluster, profiles, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        known = f"one of {', '.join(profiles)} from {path}" if profiles else f"a profile, of which {path} has none"
        raise LookupError(f"must be {known}, not {cluster!r}{meant}")
    document = profiles[cluster]
    _refuse_secrets(document)
    return check_profile(document)


def _clusters_files(request: Request, environ: Mapping[str, str]) -> Sequence[Path]:
    if request.clusters:
        return [request.clusters]
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '~')}/.config"
    beside = request.path.parent / "clusters.yaml"
    return list(dict.fromkeys((Path("clusters.yaml"), beside, Path(config) / "launch/clusters.yaml")))
