"""JobSpec + ClusterProfile -> Plan: what will run, with every default filled in. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher import __version__
from launcher.job.image import image_for, image_problem, runtime_of
from launcher.job.quantities import duration_s, size_bytes
from launcher.job.spec import BackendName, ClusterProfile, JobSpec, Mount, Resources, is_below, normal
from trainer.config import TrainConfig, config_text

DEFAULT_IMAGE = f"launch-trainer:{__version__}"
CONFIG_PATH = "/etc/launch/train.yaml"
CONTAINER_CODE = "/opt/code"  # where a container sees the job's code, read-only
WORKSPACE = "/workspace"  # the working directory of a pod
MAX_SHM = 32 * 2**30


@dataclass(frozen=True)
class Plan:
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
    profile: ClusterProfile
    command: tuple[str, ...] | None = None
    train_yaml: str | None = None
    output_dir: str | None = None
    code_digest: str | None = None
    code_archive: bytes | None = field(default=None, repr=False)

    @property
    def processes_per_node(self) -> int:
        """One per GPU, or one on the CPU."""
        return max(1, self.gpus_per_node)


def default_profile(backend: BackendName) -> ClusterProfile:
    """The profile of a job that names no cluster."""
    return ClusterProfile.model_construct(backend=backend)


def plan_run(job: JobSpec, profile: ClusterProfile, *, run_id: str, code_digest: str | None = None,
             code_archive: bytes | None = None, new_folder: bool = False) -> Plan:
    """Fill in a checked job for a cluster that it fits (see `misfits`). `new_folder`: the output folder is the run's
    own, although the job names one."""
    resources = job.resources
    memory = size_bytes(resources.memory_per_node) if resources.memory_per_node else None
    mounts = all_mounts(job, profile)
    output_dir = _output_dir(job, run_id, mounts, new=new_folder) if job.train else None
    return Plan(
        run_id=run_id,
        name=job.name,
        image=image_for(job.image or DEFAULT_IMAGE, runtime_of(profile)),
        nodes=resources.nodes,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_node=resources.cpus_per_node,
        memory=memory,
        shm=_shm(resources, memory),
        time_limit_s=duration_s(resources.time_limit) if resources.time_limit else None,
        grace_s=duration_s(profile.grace),
        restarts=job.restarts,
        mounts=mounts,
        env={**profile.env, **job.env},
        secrets=tuple(job.secrets),
        profile=profile,
        command=tuple(job.run) if job.run else None,
        train_yaml=_train_yaml(job.train, output_dir) if job.train else None,
        output_dir=output_dir,
        code_digest=code_digest,
        code_archive=code_archive,
    )


def all_mounts(job: JobSpec, profile: ClusterProfile) -> tuple[Mount, ...]:
    """What the job mounts, and what the cluster mounts elsewhere."""
    own_paths = {mount.path for mount in job.mounts}
    return (*job.mounts, *(mount for mount in profile.mounts if mount.path not in own_paths))


def mount_at(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount at exactly this path."""
    return next((mount for mount in mounts if normal(mount.path) == path), None)


def misfits(
    values: dict[str, Any], profile: ClusterProfile, cluster: str
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where raw job values and a profile cannot go together: (path, message).

    Works on raw values, so that it can be reported together with the job's own mistakes.
    """
    resources = values.get("resources")
    resources = resources if isinstance(resources, dict) else {}
    limits = (("gpus_per_node", profile.gpus_per_node, "GPUs per node"), ("nodes", profile.max_nodes, "nodes"))
    for key, limit, what in limits:
        asked = resources.get(key)
        if isinstance(asked, int) and limit is not None and asked > limit:
            yield ("resources", key), f"got {asked}, allowed: at most {limit} (cluster {cluster!r} has {limit} {what})"
    image = values.get("image")
    if isinstance(image, str) and (why := image_problem(image, runtime_of(profile))):
        yield ("image",), f"got {image!r}, allowed: an image such as registry.example.com/team/name:1 ({why})"
    if profile.backend != "kubernetes":
        mounts = values.get("mounts")
        for index, mount in enumerate(mounts if isinstance(mounts, list) else []):
            if isinstance(mount, dict) and mount.get("claim"):
                why = f"back end {profile.backend} has no claims"
                yield ("mounts", index, "claim"), f"got claim {mount['claim']!r}, allowed: host_path ({why})"
    if values.get("code") and (profile.backend == "kubernetes" or profile.container_runtime != "none"):
        yield from _mounts_on_code(values.get("mounts"), profile, cluster)


def _mounts_on_code(mounts: Any, profile: ClusterProfile, cluster: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
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


def _output_dir(job: JobSpec, run_id: str, mounts: Iterable[Mount], *, new: bool) -> str:
    """Where a run of a `train` job writes, as the trainer sees it: what the job names, else a folder of the run's own;
    with `new` such a one beside what the job names, or within it where that is a whole volume."""
    assert job.train is not None  # noqa: S101
    named = job.train.settings.output_dir
    if named is None:
        return f"outputs/{run_id}"
    return beside(named, run_id, mounts) if new else named


def beside(folder: str, name: str, mounts: Iterable[Mount]) -> str:
    """A folder of that name beside `folder`, on the same volume."""
    path = PurePosixPath(folder)
    is_volume = path in {PurePosixPath(mount.path) for mount in mounts}
    return str((path if is_volume else path.parent) / name)


def _train_yaml(train: TrainConfig, output_dir: str | None) -> str:
    """The five sections as the trainer will read them: every default written out, so that a run explains itself."""
    import json

    sections = json.loads(json.dumps(train, default=dict))
    sections["settings"]["output_dir"] = output_dir
    if train.model.init is None:
        del sections["model"]["shape"]
    return config_text(sections)
