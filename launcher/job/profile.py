"""What every back end's cluster profile has. A back end's own model adds its keys. No I/O."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from pydantic import Field

from launcher.job.image import registry_image, registry_problem
from launcher.job.spec import JobSpec, Mount
from launcher.job.types import Duration, EnvName, EnvValue, Size, Word
from trainer.config.job import Section

CONTAINER_CODE = "/opt/code"  # where a container sees the job's code, read-only
CONTAINER_HOME = "/tmp"  # noqa: S108  (a volume of the container's own)
Problem = tuple[tuple[str | int, ...], str]


class Profile(Section, defer_build=True):
    """One cluster, as an administrator describes it in clusters.yaml."""

    # What the planning of a job must know of its back end.
    sends_code: ClassVar[bool] = False  # the render holds the code; else the run folder does, which the nodes see
    shares_folder: ClassVar[bool] = True  # relative paths of a job mean the job file's folder there, too
    is_one_machine: ClassVar[bool] = False
    code_folders: ClassVar[tuple[str, ...]] = (CONTAINER_CODE,)  # where a job finds the code that came with it
    job_options: ClassVar[str | None] = None  # the section of a job file with options for this back end alone

    backend: str = Field(description="kubernetes, slurm or local.")
    python: Word = Field(
        "python3", description="Python with the trainer installed, inside the image or on the bare node.")
    mounts: list[Mount] = Field([], description="File systems that every job of this cluster sees.")
    env: dict[EnvName, EnvValue] = Field({}, description="Environment of every job, such as NCCL_SOCKET_IFNAME.")
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs that a node has; a job may not ask for more.")
    gpu_memory: Size | None = Field(None, description="Memory of one GPU, such as 80Gi (cards are named in GB and hold "
                                    "as many GiB); `launch submit` refuses a job that needs more.")
    max_nodes: int | None = Field(None, ge=1, description="Nodes that the cluster has; a job may not ask for more.")
    grace: Duration = Field("120s", description="Time between the order to stop and the kill, for the last checkpoint.")

    @property
    def uses_image(self) -> bool:
        """Whether a job runs in a container of its image."""
        return True

    def seen_at(self, path: str, job_dir: str) -> str:
        """What a path of the job means in its container: `~` is a home of its own there, and relative ones start at the
        job file's folder."""
        return posixpath.join(job_dir, re.sub(r"^~[^/]*", CONTAINER_HOME, path))

    def kept(self, mounts: Iterable[Mount], job_dir: str) -> list[str] | None:
        """The folders of a job's container that are there before it and stay; None when all of them do."""
        return [job_dir, *(mount.path for mount in mounts)] if self.uses_image else None

    def image_for(self, image: str) -> str:
        """The image as what runs it wants it written."""
        return registry_image(image)

    def image_problem(self, image: str) -> str | None:
        """Why it cannot be run there; None when it can, or when no image is run."""
        return registry_problem(image, f"back end {self.backend}")

    def problems(self, values: dict[str, Any]) -> Iterator[Problem]:
        """What in a job's raw values this back end cannot give: (path, message). Raw, so that it is reported together
        with the job's other mistakes."""
        yield from claims_problems(values, f"back end {self.backend}")

    def notes(self, job: JobSpec, *, code: bool) -> Iterator[str]:
        """What whoever sends this job there should know. `code`: whether it has a code folder."""
        return iter(())


def claims_problems(values: dict[str, Any], who: str) -> Iterator[Problem]:
    """Mounts of claims, where nobody knows claims."""
    mounts = values.get("mounts")
    for index, mount in enumerate(mounts if isinstance(mounts, list) else []):
        if isinstance(mount, dict) and mount.get("claim"):
            yield ("mounts", index, "claim"), f"{who} has no claims; mount a host_path"
