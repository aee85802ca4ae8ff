"""What to type next, in hints: the command that has started this run, with other options. The launcher leaves it in the
environment where a job inherits the user's."""

import json
import shlex
from collections.abc import Mapping, Sequence

from trainer.config_file import Change

VARIABLE = "LAUNCH_COMMAND"
USUAL = "launch submit JOB.yaml"
LONGEST = 400  # characters


def command(environ: Mapping[str, str], *words: str) -> str:
    """The command with `words` behind it."""
    return f"{environ.get(VARIABLE, USUAL)} {shlex.join(words)}"


def undoing(environ: Mapping[str, str], changes: Sequence[Change], *words: str) -> str:
    """The command with `words` behind it and the old values of the fields that were changed; without these values where
    they would be too long to type."""
    old = (f"train.{change.field}={json.dumps(change.old, ensure_ascii=False)}" for change in changes)
    full = command(environ, *(word for setting in old for word in ("--set", setting)), *words)
    return full if len(full) <= LONGEST else f"{command(environ, *words)} (without these changes)"
