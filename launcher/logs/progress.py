"""The trainer's step line, read back from a log, whatever back end it came through. Pure.

The line is
`step 10/250  epoch 0.12  loss 2.3456  lr 1.0e-03  grad 0.51  tok/s 12345  mfu 41.2%  mem 1.2GiB  eta 0:00:32`,
where mfu may be missing.
"""

import re
from dataclasses import dataclass

_STEP = re.compile(r"^step (\d+)/(\d+)((?:  \S+ \S+)+)$")


@dataclass(frozen=True)
class Step:
    """A step line: `values` are its words as printed, by name."""

    step: int
    total: int
    values: dict[str, str]


def parse_step(text: str) -> Step | None:
    """The step that a log line reports, or None for any other line."""
    match = _STEP.match(text)
    if not match:
        return None
    pairs = (pair.split(" ", 1) for pair in match[3].split("  ") if pair)
    return Step(int(match[1]), int(match[2]), dict(pairs))
