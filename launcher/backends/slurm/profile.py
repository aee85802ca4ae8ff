"""The profile of a Slurm cluster. No I/O."""

from typing import Literal

from pydantic import Field

from launcher.backends.hosts.profile import HostProfile
from launcher.job.types import Word


class SlurmProfile(HostProfile):
    """A Slurm cluster: one partition of it."""

    backend: Literal["slurm"] = Field(description="slurm.")
    partition: Word | None = Field(None, description="Partition.")
    account: Word | None = Field(None, description="Account.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Node features.")
