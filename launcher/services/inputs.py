"""Whether what a job reads is here, where the job runs here, too, and in no container: elsewhere a path means something
else."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.job.kind import Input, ReadsFiles
from launcher.job.load import Document, shown
from launcher.job.profile import Profile
from launcher.job.spec import JobSpec
from launcher.kinds.registry import KINDS


def input_problems(document: Document, job_dir: Path, profile: Profile) -> Iterator[str]:
    """Every file and folder that the job names and that is not here; from raw values, so that it is reported together
    with the job's other mistakes."""
    if profile.uses_image or not profile.is_one_machine:
        return
    for key in document.values:
        for one in _inputs(key, document.values[key]):
            if not _is_there(one, job_dir):
                loc = (key, *one.loc)
                yield f"{document.at(loc)}must be {one.allowed}, not {shown(one.path)} (seen from {job_dir})"


def _inputs(key: str, section: Any) -> Iterator[Input]:
    if key not in JobSpec.model_fields and key in KINDS and isinstance(kind := KINDS.load(key)(), ReadsFiles):
        yield from kind.inputs(section)


def _is_there(one: Input, job_dir: Path) -> bool:
    try:
        path = os.path.expanduser(one.path)
        if one.is_folder:
            return (job_dir / path).is_dir()
        return (job_dir / path).exists() or any(glob.iglob(path, root_dir=job_dir, recursive=True))
    except (OSError, ValueError):  # a name that is too long, a NUL character
        return False
