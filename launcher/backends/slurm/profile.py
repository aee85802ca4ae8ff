"""The profile of a Slurm cluster. No I/O."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from launcher.backends.hosts.profile import HostProfile
from launcher.backends.slurm.options import ClusterSection, SbatchOptions
from launcher.job.spec import JobSpec
from launcher.job.types import Word


class SlurmProfile(HostProfile):
    """A Slurm cluster: one partition of it."""

    job_options: ClassVar[str | None] = "sbatch"

    backend: Literal["slurm"] = Field(description="slurm.")
    partition: Word | None = Field(None, description="Partition.")
    account: Word | None = Field(None, description="Account.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Node features.")
    sbatch: ClusterSection = Field(default_factory=SbatchOptions.model_construct, description="Options of sbatch for "
                                   "every job, and what is done before each. A list alone is `options`.")

    def notes(self, job: JobSpec, *, code: bool) -> Iterator[str]:
        """Slurm gives a task one core unless it is told otherwise, and a GPU is not fed by one."""
        options = getattr(job, "sbatch", None)
        if job.resources.gpus_per_node and not job.resources.cpus_per_node and not self.asked("cpus_per_gpu", options):
            yield ("resources.cpus_per_node: not set, so Slurm gives each node's task its default, often one core; set "
                   "it, or sbatch.cpus_per_gpu")
        if options and options.cpus_per_gpu and job.resources.cpus_per_node:
            yield "sbatch.cpus_per_gpu: not used, since resources.cpus_per_node says how many"
        if options and options.gpu_type and not job.resources.gpus_per_node:
            yield "sbatch.gpu_type: not used, since resources.gpus_per_node is 0"

    def asked(self, name: str, job: Any) -> Any:
        """An option of sbatch: the job's own, else the profile's."""
        given = (getattr(section, name, None) for section in (job, self, self.sbatch))
        return next((value for value in given if value is not None), None)

    def all_of(self, name: str, job: Any) -> list[str]:
        """Items of a list: the profile's, then the job's."""
        return [*getattr(self.sbatch, name), *getattr(job, name, [])]
