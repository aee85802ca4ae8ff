"""What is sent. Pure."""

from dataclasses import dataclass

from launcher.job.plan import Plan


@dataclass(frozen=True)
class Rendered:
    """What `launch render` prints and what `submit` sends: this text, and nothing else."""

    plan: Plan
    text: str
    suffix: str = ".sh"
