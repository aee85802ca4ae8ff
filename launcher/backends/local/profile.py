"""The profile of this machine. No I/O."""

from typing import ClassVar, Literal

from pydantic import Field

from launcher.backends.hosts.profile import HostProfile


class LocalProfile(HostProfile):
    """This machine, which stands in for each of a job's nodes."""

    is_one_machine: ClassVar[bool] = True

    backend: Literal["local"] = Field(description="local.")
