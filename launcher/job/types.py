"""Values of one line in the files that users write: durations, sizes, names, images. Pure."""

import posixpath
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from launcher.job.quantities import DURATION_FORM, SIZE_FORM, duration_s, size_bytes


def _quantity(parse: Any, form: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str):
            parse(value)
        elif isinstance(value, int | float):
            raise ValueError(f"must be {form}, not {value}")
        return value

    return BeforeValidator(check)


def _matches(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}, not {text!r}")
        return text

    return AfterValidator(check)


def _env_text(value: Any) -> Any:
    """A whole number becomes its text; other types are left to be refused (`true` or 1e3 have several spellings)."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def single_line(text: str) -> str:
    """Text that a program can be given."""
    if "\0" in text:
        raise ValueError(f"must be text without a NUL character, not {text!r}")
    return text


def _without_value(text: str) -> str:
    """Refuse `NAME=value` without repeating the value."""
    name, equals, _ = text.partition("=")
    if equals:
        raise ValueError(f"must be the name {name!r} alone, without a value (that comes from your environment)")
    return text


_ENV_NAME = _matches(r"[A-Za-z_][A-Za-z0-9_]*", "a name of letters, digits and _ that does not start with a digit")
Image = Annotated[str, _matches(r"[A-Za-z0-9][\w./:@-]*|[a-z]+://[\w./:@#%?&=+~-]+|\.{0,2}/[\w./@+-]+",
                  "an image such as registry.example.com/team/trainer:0.1, or a .sif or .sqsh file by its full path")]
AbsolutePath = Annotated[str, _matches(r"/[^\0\n:,]*", "an absolute path without ':' or ','")]
Duration = Annotated[str, _quantity(duration_s, DURATION_FORM)]
Size = Annotated[str, _quantity(size_bytes, SIZE_FORM)]
# What launch itself sets in a job.
_OWN_NAMES = frozenset((
    "LAUNCH_COMMAND", "LAUNCH_GPUS_PER_NODE", "LAUNCH_GRACE_S", "LAUNCH_HOME", "LAUNCH_JOB_NAME", "LAUNCH_LOG_ARCHIVE",
    "LAUNCH_NODES", "LAUNCH_POD_NAME", "LAUNCH_PROCESSES_PER_NODE", "LAUNCH_RUN_ID", "MASTER_ADDR", "NODE_RANK"))
# What the scripts that a secret is brought to cannot do without.
_SHELL_NAMES = re.compile(r"PATH|IFS|E?UID|PPID|SHELLOPTS|BASHOPTS|BASH_.*|RUN_DIR|ATTEMPT(_DIR)?|IMAGES?|[a-z_]+")


def _not_own(name: str) -> str:
    if name in _OWN_NAMES:
        raise ValueError(f"{name} is set by launch itself (choose another name)")
    return name


def _not_the_shells(name: str) -> str:
    if _SHELL_NAMES.fullmatch(name):
        raise ValueError(f"{name} is a variable of the shell that starts the job (choose another name)")
    return name


EnvName = Annotated[str, _ENV_NAME, AfterValidator(_not_own)]
SecretName = Annotated[str, AfterValidator(_without_value), _ENV_NAME, AfterValidator(_not_own),
                       AfterValidator(_not_the_shells)]
EnvValue = Annotated[str, BeforeValidator(_env_text), AfterValidator(single_line)]
Word = Annotated[str, _matches(r"[^\s\0]+", "one word without blanks")]
DnsName = Annotated[str, _matches(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "lower-case letters, digits, '-' and '.'")]


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is the folder or lies in it."""
    return f"{normal(path).rstrip('/')}/".startswith(f"{normal(folder).rstrip('/')}/")


def normal(path: str) -> str:
    """An absolute path with each folder named once: no `.`, `..` or second slash."""
    return "/" + posixpath.normpath(path).lstrip("/")
