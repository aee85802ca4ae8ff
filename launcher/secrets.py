"""Secrets: names in the job file, values from the submitter's environment, never in a render, a log or argv."""

import shlex
from collections.abc import Iterable, Mapping

from launcher.errors import SpecError


def secret_values(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of `names`. Raises SpecError naming every one that is not set."""
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise SpecError(f"secrets: got {', '.join(missing)}, allowed: variables that are set here",
                        f"export {missing[0]}=... in this shell, or take it out of the job file")
    return {name: environ[name] for name in names}


def secrets_file(values: Mapping[str, str]) -> str:
    """A file that bash sources; it must be written with mode 0600."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
