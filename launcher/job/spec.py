"""What a user writes: JobSpec (job.yaml) and ClusterProfile (an entry of clusters.yaml). No I/O."""

import posixpath
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from launcher.job.quantities import DURATION_FORM, SIZE_FORM, duration_s, size_bytes
from trainer.config import Section, TrainConfig

BackendName = Literal["kubernetes", "slurm", "local"]
BACKENDS: tuple[BackendName, ...] = ("kubernetes", "slurm", "local")


def _quantity(parse: Any, form: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str):
            parse(value)
        elif isinstance(value, int | float):
            raise ValueError(f"got {value}, allowed: {form}")
        return value

    return BeforeValidator(check)


def _matches(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"got {text!r}, allowed: {allowed}")
        return text

    return AfterValidator(check)


def _env_text(value: Any) -> Any:
    """A whole number becomes its text; other types are left to be refused (`true` or 1e3 have several spellings)."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _single_line(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"got {text!r}, allowed: text without a NUL character")
    return text


def _without_value(text: str) -> str:
    """Refuse `NAME=value` without repeating the value."""
    name, equals, _ = text.partition("=")
    if equals:
        raise ValueError(f"got {name!r} with a value, allowed: the name alone (the value comes from your environment)")
    return text


_ENV_NAME = _matches(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and _, not starting with a digit")
_IMAGE = _matches(r"[A-Za-z0-9][\w./:@-]*|[a-z]+://[\w./:@#%?&=+~-]+|\.{0,2}/[\w./@+-]+",
                  "an image such as registry.example.com/team/trainer:0.1, or a .sif or .sqsh file by its full path")
_ABSOLUTE = _matches(r"/[^\0\n:,]*", "an absolute path without ':' or ','")

Duration = Annotated[str, _quantity(duration_s, DURATION_FORM)]
Size = Annotated[str, _quantity(size_bytes, SIZE_FORM)]
EnvName = Annotated[str, _ENV_NAME]
SecretName = Annotated[str, AfterValidator(_without_value), _ENV_NAME]
EnvValue = Annotated[str, BeforeValidator(_env_text), AfterValidator(_single_line)]
Word = Annotated[str, _matches(r"[^\s\0]+", "one word without blanks")]
DnsName = Annotated[str, _matches(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "lower-case letters, digits, '-' and '.'")]


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

    path: Annotated[str, _ABSOLUTE] = Field(description="Where the job sees it.")
    claim: DnsName | None = Field(None, description="PersistentVolumeClaim (Kubernetes).")
    host_path: Annotated[str, _ABSOLUTE] | None = Field(None, description="Folder of the node.")
    read_only: bool = Field(False, description="Whether the job may only read it.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            given = "neither claim nor host_path" if self.claim is None else "both claim and host_path"
            raise ValueError(f"got {given}, allowed: exactly one of the two")
        return self


class JobSpec(Section):
    """A job file."""

    name: str = Field(min_length=1, max_length=200, description="Name of the job; its objects are named after it.")
    image: Annotated[str, _IMAGE] | None = Field(
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
    restarts: int = Field(0, ge=0, le=1000, description="Failures after which the job is started again, from its last "
                          "checkpoint. Pre-emptions do not count.")
    train: TrainConfig | None = Field(None, description="Fine-tune a model; the five sections.")
    run: list[str] | None = Field(None, min_length=1, description="Run this command on every node instead of `train`.")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        if (self.train is None) == (self.run is None):
            given = "both" if self.train else "neither"
            problems.append(f"got {given} of train and run, allowed: exactly one")
        both = sorted(set(self.secrets) & set(self.env))
        if both:
            problems.append(f"got {', '.join(both)} in secrets and in env, allowed: one of the two")
        paths = [mount.path for mount in self.mounts]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            problems.append(f"got {', '.join(twice)} twice in mounts, allowed: each path once")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Toleration(Section):
    """A taint the pods accept (Kubernetes core/v1 Toleration)."""

    key: str | None = Field(None, description="Key of the taint. Default: every key.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="Whether the value counts.")
    value: str | None = Field(None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint. Default: every effect.")
    tolerationSeconds: int | None = Field(  # noqa: N815  (the API's own spelling)
        None, description="Seconds that a NoExecute taint is borne. Default: for ever.")


class ClusterProfile(Section):
    """One cluster, as an administrator describes it in clusters.yaml."""

    backend: BackendName = Field(description="kubernetes, slurm or local.")
    context: str | None = Field(
        None, min_length=1, description="Kubernetes: context of the kubeconfig. Default: the current one.")
    namespace: DnsName = Field("default", description="Kubernetes: namespace of the job.")
    kubernetes_kind: Literal["Job", "JobSet"] = Field(
        "Job", description="Kubernetes: what a run is there. A Job needs nothing installed; a JobSet is made only when "
                           "asked for, and restarts all pods at once.")
    repair: Literal["ask", "auto"] = Field(
        "ask", description="Kubernetes: whether a follower gives up the pod of a lost machine, so that it is replaced, "
                           "by itself or only names it.")
    queue: Word | None = Field(None, description="Kubernetes: Kueue LocalQueue.")
    priority_class: DnsName | None = Field(None, description="Kubernetes: PriorityClass of the pods.")
    service_account: DnsName | None = Field(
        None, description="Kubernetes: ServiceAccount of the pods; its token is never mounted.")
    image_pull_secrets: list[DnsName] = Field([], description="Kubernetes: Secrets that hold registry credentials.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Kubernetes: when nodes pull.")
    run_as_user: int = Field(1000, ge=1, lt=2**31, description="Kubernetes: numeric user and group of the container.")
    node_selector: dict[str, str] = Field({}, description="Kubernetes: labels a node must have.")
    tolerations: list[Toleration] = Field([], description="Kubernetes: taints the pods accept.")
    gpu_resource: Word = Field("nvidia.com/gpu", description="Kubernetes: name of the GPU resource.")
    extra_resources: dict[str, str] = Field(
        {}, description="Kubernetes: more resources per node, such as rdma/hca: '1'.")
    log_archive: Annotated[str, _ABSOLUTE] | None = Field(
        None, description="Kubernetes: folder on one of the profile's mounts where training jobs keep a copy of their "
                          "logs; what a node throws away unread is filled from it.")
    partition: Word | None = Field(None, description="Slurm: partition.")
    account: Word | None = Field(None, description="Slurm: account.")
    qos: Word | None = Field(None, description="Slurm: quality of service.")
    constraint: Word | None = Field(None, description="Slurm: node features.")
    container_runtime: Literal["none", "pyxis", "apptainer", "podman", "docker"] = Field(
        "none", description="Slurm and local: what runs the image; `none` runs on the bare node.")
    container_args: list[str] = Field(
        [], description="Slurm and local: more arguments for podman, docker or apptainer.")
    python: Word = Field(
        "python3", description="Python with the trainer installed, inside the image or on the bare node.")
    mounts: list[Mount] = Field([], description="File systems that every job of this cluster sees.")
    env: dict[EnvName, EnvValue] = Field({}, description="Environment of every job, such as NCCL_SOCKET_IFNAME.")
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs that a node has; a job may not ask for more.")
    gpu_memory: Size | None = Field(None, description="Memory of one GPU, such as 80Gi (cards are named in GB and hold "
                                    "as many GiB); `launch submit` refuses a job that needs more.")
    max_nodes: int | None = Field(None, ge=1, description="Nodes that the cluster has; a job may not ask for more.")
    grace: Duration = Field("120s", description="Time between the order to stop and the kill, for the last checkpoint.")

    @model_validator(mode="after")
    def _archive_on_a_mount(self) -> Self:
        if self.log_archive is None:
            return self
        if self.backend != "kubernetes":
            raise ValueError(f"log_archive: got one for back end {self.backend}, allowed: kubernetes only (elsewhere "
                             "the log files are the archive)")
        paths = [mount.path for mount in self.mounts if not mount.read_only]
        odd = ".." in self.log_archive.split("/") or "$" in self.log_archive
        if odd or not any(is_below(self.log_archive, path) for path in paths):
            raise ValueError(f"log_archive: got {self.log_archive!r}, allowed: a folder below one of the profile's "
                             f"writable mounts ({', '.join(paths) or 'there are none'})")
        return self


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is the folder or lies in it."""
    return f"{normal(path).rstrip('/')}/".startswith(f"{normal(folder).rstrip('/')}/")


def normal(path: str) -> str:
    """An absolute path with each folder named once: no `.`, `..` or second slash."""
    return "/" + posixpath.normpath(path).lstrip("/")
