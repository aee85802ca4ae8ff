"""What a user writes in a job file, apart from what its kind and its back end add. No I/O.

The whole model of a job file is put together by services/job_model.py: one section for each job kind, of which a job
has exactly one, and one for each back end that takes options from a job.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from launcher.job.types import AbsolutePath, DnsName, Duration, EnvName, EnvValue, Image, SecretName, Size, normal
from trainer.config.job import Section


class Resources(Section):
    """What each node gives to the job."""

    nodes: int = Field(1, ge=1, le=100_000, description="Number of machines.")
    gpus_per_node: int = Field(0, ge=0, le=1024, description="GPUs on each; also the processes started on each "
                               "(one process without GPUs).")
    cpus_per_node: int | None = Field(None, ge=1, le=100_000, description="CPU cores on each. Default: the cluster's.")
    memory_per_node: Size | None = Field(None, description="Memory of each, such as 512Gi. Default: the cluster's.")
    shm: Size | None = Field(None, description="Size of /dev/shm. Default: a quarter of the memory, 32Gi at most. "
                             "It counts as memory of the container.")
    time_limit: Duration | None = Field(None, description="The job is ended after this long, such as 12h.")


class Mount(Section):
    """A file system that the job sees at `path`."""

    path: AbsolutePath = Field(description="Where the job sees it.")
    claim: DnsName | None = Field(None, description="PersistentVolumeClaim (Kubernetes).")
    host_path: AbsolutePath | None = Field(None, description="Folder of the node.")
    read_only: bool = Field(False, description="Whether the job may only read it.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("needs claim or host_path" if self.claim is None else "has both claim and host_path (keep "
                             "one of the two)")
        return self


def mount_at(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount at exactly this path."""
    return next((mount for mount in mounts if normal(mount.path) == path), None)


class JobSpec(Section, defer_build=True):  # only the whole model is ever built
    """A job file."""

    kinds: ClassVar[tuple[str, ...]] = ()  # the sections of job kinds, of which exactly one is given

    name: str = Field(min_length=1, max_length=200, description="Name of the job; its objects are named after it.")
    image: Image | None = Field(
        None, description="Container image: registry/team/name:1, with or without docker:// in front. With apptainer "
                          "also oras://, library://, shub://, http(s):// and the path of a file; with pyxis also "
                          "docker://registry#team/name:1 and a .sqsh file. Default: the image that docker/ builds.")
    cluster: str | None = Field(None, min_length=1, description="Profile from clusters.yaml. Default: this machine.")
    resources: Resources = Field(default_factory=Resources.model_construct, description="What each node gives.")
    code: str | None = Field(None, min_length=1, description="Folder to ship as it is, uncommitted changes too "
                             "(.gitignore and .launchignore are honoured, the trainer's own output folders left out); "
                             "read-only and on PYTHONPATH in the job.")
    mounts: list[Mount] = Field([], description="File systems the job sees.")
    secrets: list[SecretName] = Field(
        [], description="Names of environment variables whose values the submitter holds; the values never enter a "
                        "render, a log or a command line.")
    env: dict[EnvName, EnvValue] = Field({}, description="Environment variables of the job.")
    restarts: int = Field(0, ge=0, le=1000, description="Failures after which the job is restarted from its last "
                          "checkpoint. Preemptions do not count.")

    @property
    def kind(self) -> str:
        """The section that says what the job does."""
        return next(key for key in self.kinds if getattr(self, key, None) is not None)

    @property
    def section(self) -> Any:
        """What stands there."""
        return getattr(self, self.kind)

    @property
    def backend_sections(self) -> list[str]:
        """The sections it has that are for one back end alone."""
        own = type(self).model_fields.keys() - JobSpec.model_fields.keys() - {*self.kinds}
        return sorted(section for section in own if getattr(self, section) is not None)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = [*self._kind_problems()]
        both = sorted(set(self.secrets) & set(self.env))
        if both:
            problems.append(f"secrets and env both name {', '.join(both)} (keep one of the two)")
        paths = [mount.path for mount in self.mounts]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            problems.append(f"mounts has {', '.join(twice)} twice (a path can be mounted once)")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _kind_problems(self) -> list[str]:
        given = [key for key in self.kinds if getattr(self, key, None) is not None]
        if len(given) == 1:
            return []
        return [f"{' and '.join(given)} are both given, and a job has exactly one" if given else
                f"one of {', '.join(self.kinds)} is required: it says what the job does"]
