"""What to type next, in hints: the command that has started this run, with other options. The launcher leaves it in the
environment where a job inherits the user's. No command sets a field twice."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from trainer.config.file import Change

VARIABLE = "LAUNCH_COMMAND"
USUAL = "launch submit JOB.yaml"
LONGEST = 400  # characters
SET, RESUME = "--set", "--resume"
SETTLED = {"train.settings.output_dir", "train.runtime.resume"}  # by --resume


def command(environ: Mapping[str, str], *words: str) -> str:
    """The command with `words` behind it, without the settings that they replace."""
    replaced = {setting.partition("=")[0] for option, setting in pairwise(words) if option == SET}
    if RESUME in words:
        replaced |= SETTLED
    return shlex.join([*_without(replaced, shlex.split(environ.get(VARIABLE, USUAL))), *words])


def undoing(environ: Mapping[str, str], changes: Sequence[Change], *words: str) -> str:
    """The command with `words` behind it and the old values of the fields that were changed; without these values where
    they would be too long to type."""
    old = (f"train.{change.field}={json.dumps(change.old, ensure_ascii=False)}" for change in changes)
    full = command(environ, *(word for setting in old for word in ("--set", setting)), *words)
    return full if len(full) <= LONGEST else f"{command(environ, *words)} (without these changes)"


def _without(fields: set[str], words: Sequence[str]) -> Iterator[str]:
    """The words of a command, but for those that set these fields."""
    rest = iter(words)
    for word in rest:
        if word != SET:
            yield word
        elif (setting := next(rest, "")).partition("=")[0] not in fields:
            yield from (SET, setting)
