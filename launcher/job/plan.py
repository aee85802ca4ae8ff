"""JobSpec + profile + payload -> Plan: what will run, with every default filled in. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from typing_extensions import TypeVar

from launcher import __version__
from launcher.job.payload import Payload
from launcher.job.profile import CONTAINER_CODE, Problem, Profile
from launcher.job.quantities import duration_s, size_bytes
from launcher.job.spec import JobSpec, Mount, Resources
from launcher.job.types import is_below

DEFAULT_IMAGE = f"launch-trainer:{__version__}"
CONFIG_FOLDER = "/etc/launch"  # where a container sees the files of its payload
MAX_SHM = 32 * 2**30


ProfileT_co = TypeVar("ProfileT_co", bound=Profile, default=Profile, covariant=True)


@dataclass(frozen=True)
class Plan(Generic[ProfileT_co]):
    """Everything a back end needs to render a run. Sizes in bytes, times in seconds."""

    run_id: str
    name: str
    image: str
    nodes: int
    gpus_per_node: int
    cpus_per_node: int | None
    memory: int | None
    shm: int
    time_limit_s: int | None
    grace_s: int
    restarts: int
    mounts: tuple[Mount, ...]
    env: dict[str, str]
    secrets: tuple[str, ...]
    profile: ProfileT_co
    payload: Payload
    options: Any = None  # what the job says for this back end alone
    code_digest: str | None = None
    code_archive: bytes | None = field(default=None, repr=False)

    @property
    def processes_per_node(self) -> int:
        """One per GPU, or one on the CPU."""
        return max(1, self.gpus_per_node)


def plan_run(job: JobSpec, profile: Profile, payload: Payload, *, run_id: str, code_digest: str | None = None,
             code_archive: bytes | None = None) -> Plan:
    """Fill in a checked job for a cluster that it fits (see `misfits`)."""
    resources = job.resources
    memory = size_bytes(resources.memory_per_node) if resources.memory_per_node else None
    return Plan(
        run_id=run_id,
        name=job.name,
        image=profile.image_for(job.image or DEFAULT_IMAGE),
        nodes=resources.nodes,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_node=resources.cpus_per_node,
        memory=memory,
        shm=_shm(resources, memory),
        time_limit_s=duration_s(resources.time_limit) if resources.time_limit else None,
        grace_s=duration_s(profile.grace),
        restarts=job.restarts,
        mounts=all_mounts(job, profile),
        env={**profile.env, **job.env},
        secrets=tuple(job.secrets),
        profile=profile,
        payload=payload,
        options=getattr(job, profile.job_options, None) if profile.job_options else None,
        code_digest=code_digest,
        code_archive=code_archive,
    )


def all_mounts(job: JobSpec, profile: Profile) -> tuple[Mount, ...]:
    """What the job mounts, and what the cluster mounts elsewhere."""
    own_paths = {mount.path for mount in job.mounts}
    return (*job.mounts, *(mount for mount in profile.mounts if mount.path not in own_paths))


def misfits(values: dict[str, Any], profile: Profile, cluster: str) -> Iterator[Problem]:
    """Where raw job values and a profile cannot go together: (path, message).

    Works on raw values, so that it can be reported together with the job's own mistakes.
    """
    resources = values.get("resources")
    resources = resources if isinstance(resources, dict) else {}
    limits = (("gpus_per_node", profile.gpus_per_node, "GPUs per node"), ("nodes", profile.max_nodes, "nodes"))
    for key, limit, what in limits:
        asked = resources.get(key)
        if isinstance(asked, int) and limit is not None and asked > limit:
            yield ("resources", key), f"is {asked}, but cluster {cluster!r} has {limit} {what}"
    image = values.get("image")
    if isinstance(image, str) and (why := profile.image_problem(image)):
        yield ("image",), f"{image!r} cannot be run: {why}; name one such as registry.example.com/team/name:1"
    yield from profile.problems(values)
    if values.get("code") and profile.uses_image:
        yield from _mounts_on_code(values.get("mounts"), profile, cluster)


def _mounts_on_code(mounts: Any, profile: Profile, cluster: str) -> Iterator[Problem]:
    """Nothing else can be mounted where a container has the code, nor above or below."""
    def clash(path: Any) -> bool:
        return isinstance(path, str) and path.startswith("/") and (
            is_below(path, CONTAINER_CODE) or is_below(CONTAINER_CODE, path))

    for index, mount in enumerate(mounts if isinstance(mounts, list) else []):
        if isinstance(mount, dict) and clash(mount.get("path")):
            yield ("mounts", index, "path"), (f"{mount['path']} overlaps {CONTAINER_CODE}, where launch puts the "
                                              "job's code; mount it at another path")
    for path in [mount.path for mount in profile.mounts if clash(mount.path)]:
        yield ("code",), (f"cluster {cluster!r} mounts {path}, which overlaps {CONTAINER_CODE}, where launch puts the "
                          "job's code; change that mount in clusters.yaml")


def _shm(resources: Resources, memory: int | None) -> int:
    if resources.shm:
        return size_bytes(resources.shm)
    return min(MAX_SHM, memory // 4) if memory else 2**30
