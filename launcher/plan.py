"""JobSpec + ClusterProfile -> Plan: what will run, with every default filled in. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher import __version__
from launcher.quantities import duration_s, size_bytes
from launcher.spec import BackendName, ClusterProfile, JobSpec, Mount, Resources
from trainer.config import TrainConfig, config_text

DEFAULT_IMAGE = f"launch-trainer:{__version__}"
CONFIG_PATH = "/etc/launch/train.yaml"
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
    own_paths = {mount.path for mount in job.mounts}
    mounts = (*job.mounts, *(mount for mount in profile.mounts if mount.path not in own_paths))
    output_dir = _output_dir(job, run_id, mounts, new=new_folder) if job.train else None
    return Plan(
        run_id=run_id,
        name=job.name,
        image=job.image or DEFAULT_IMAGE,
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
    if why := _no_image_file(values.get("image"), profile):
        yield ("image",), f"got {values['image']!r}, allowed: an image such as registry.example.com/team/name:1 ({why})"
    if profile.backend != "kubernetes":
        mounts = values.get("mounts")
        for index, mount in enumerate(mounts if isinstance(mounts, list) else []):
            if isinstance(mount, dict) and mount.get("claim"):
                why = f"back end {profile.backend} has no claims"
                yield ("mounts", index, "claim"), f"got claim {mount['claim']!r}, allowed: host_path ({why})"


def _no_image_file(image: Any, profile: ClusterProfile) -> str | None:
    """Why an image that is a file cannot be run there; None when it can, or when no image is run."""
    if not (isinstance(image, str) and image.startswith("/")):
        return None
    if profile.backend == "kubernetes":
        return "back end kubernetes takes no image files"
    reads = {"none": image, "apptainer": ".sif", "pyxis": ".sqsh"}.get(profile.container_runtime)
    return None if reads and image.endswith(reads) else f"{profile.container_runtime} reads no such files"


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
