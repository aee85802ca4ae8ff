"""The models of job files and profiles, put together from the kinds and back ends that there are."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import Field, create_model

from launcher.backends.registry import BACKENDS, OPTIONS
from launcher.errors import SpecError
from launcher.job.check import validate
from launcher.job.kind import Kind
from launcher.job.load import Document, Loc, shown
from launcher.job.profile import Profile
from launcher.job.spec import JobSpec
from launcher.kinds.registry import KINDS


def job_model(keys: Iterable[str] | None = None) -> type[JobSpec]:
    """The model of a job file with these keys; of any job file when one of them is unknown, or none are given. A
    section that a job has not costs an import, and is left out."""
    sections = {*KINDS.own, *OPTIONS.own}
    given = sections if keys is None else set(keys)
    if given <= sections | JobSpec.model_fields.keys():
        return _model(frozenset(given & sections))
    return _model(frozenset([*KINDS.usable(given), *OPTIONS.usable(given)]))


def default_profile(backend: str) -> Profile:
    """The profile of a job that names no cluster."""
    return BACKENDS.load(backend).profile_model().model_construct(backend=backend)


def check_job(document: Document, more_problems: Sequence[str] = ()) -> JobSpec:
    """A job file, checked. Raises SpecError listing every mistake, `more_problems` among them."""
    return validate(job_model(document.values), document, more_problems, whole=job_model, owner=_profile_with)


def check_profile(document: Document) -> Profile:
    """A profile, checked. Raises SpecError listing every mistake."""
    if not document.values and document.problems:
        raise SpecError("\n".join(document.problems))
    backend = document.values.get("backend")
    if isinstance(backend, str) and backend in BACKENDS:
        model = BACKENDS.load(backend).profile_model()
        return validate(model, document, owner=lambda loc: _other_backend(loc, backend))
    known = BACKENDS.names()
    if backend is None:
        raise SpecError("\n".join([*document.problems, f"{document.at(('backend',))}is required: {_one_of(known)}"]))
    import difflib

    near = next(iter(difflib.get_close_matches(str(backend).lower(), known, 1)), None)
    meant = f" (did you mean {near}?)" if near else ""
    wrong = f"{document.at(('backend',))}must be {_one_of(known)}, not {shown(backend)}{meant}"
    if near is None:
        raise SpecError("\n".join([*document.problems, wrong]))
    assumed = dataclasses.replace(document, values={**document.values, "backend": near})  # for the other mistakes
    return validate(BACKENDS.load(near).profile_model(), assumed, [wrong])


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _other_backend(loc: Loc, backend: str) -> str | None:
    """That a key of a profile is one of another back end's profiles."""
    owner = _with_key(loc)
    return owner and f"this is a setting of {owner} profiles, and this one is for {backend}"


def _profile_with(loc: Loc) -> str | None:
    """That a key of a job file is one of profiles."""
    owner = _with_key(loc)
    return owner and f"unknown key; {loc[0]} is a setting of {owner} profiles, in clusters.yaml"


def _with_key(loc: Loc) -> str | None:
    """The back end whose profiles have this key at their top level."""
    models = ((name, BACKENDS.load(name).profile_model()) for name in BACKENDS.usable())
    return next((name for name, model in models if len(loc) == 1 and loc[0] in model.model_fields), None)


def kind_of(job: JobSpec) -> Kind:
    """The kind that a checked job is of."""
    return KINDS.load(job.kind)()


@cache
def _model(sections: frozenset[str]) -> type[JobSpec]:
    """With these sections; all kinds are known by name."""
    kinds = KINDS.names() if sections - {*KINDS.own, *OPTIONS.own} else list(KINDS.own)
    fields: dict[str, Any] = {}
    for kind in (KINDS.load(key) for key in kinds if key in sections):
        fields[kind.key] = (kind.model | None, Field(None, description=kind.description))
    for key in (key for key in OPTIONS.names() if key in sections) if sections - set(kinds) else ():
        model = OPTIONS.load(key)
        fields[key] = (model | None, Field(None, description=_first_line(model)))
    found: type[JobSpec] = create_model("JobSpec", __base__=JobSpec, __doc__=JobSpec.__doc__, **fields)
    found.kinds = tuple(kinds)
    return found


def _first_line(annotation: Any) -> str:
    """What a model says of itself; of a model with a validator in front as well."""
    model = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return (model.__doc__ or "").strip()
