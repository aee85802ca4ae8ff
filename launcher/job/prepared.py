"""A checked job with everything that its render depends on."""

from dataclasses import dataclass
from pathlib import Path

from launcher.job.code.snapshot import Snapshot, archive
from launcher.job.plan import CONTAINER_CODE, WORKSPACE, Plan, all_mounts, mount_at, plan_run
from launcher.job.spec import ClusterProfile, JobSpec


@dataclass(frozen=True)
class Prepared:
    """A checked job and everything its render depends on."""

    job: JobSpec
    job_dir: Path
    profile: ClusterProfile
    snapshot: Snapshot | None
    base_id: str
    cluster: str | None
    new_folder: bool = False

    @property
    def notes(self) -> list[str]:
        """What whoever sends it should know of its code."""
        if self.snapshot is None:
            return []
        large = [self.snapshot.described()] if self.snapshot.is_large else []
        mount = mount_at(all_mounts(self.job, self.profile), WORKSPACE)
        if mount is None or self.profile.backend != "kubernetes":
            return large
        where = f"claim {mount.claim}" if mount.claim else f"{mount.host_path} of the node"
        return [*large, f"code: the job finds it at {CONTAINER_CODE} (read-only, on PYTHONPATH); relative paths start "
                        f"at {WORKSPACE}, which is {where}: launch writes nothing there"]

    def plan(self, run_id: str | None = None) -> Plan:
        """The plan under a run id; by default the hash of all that the render depends on."""
        packed = archive(self.snapshot) if self.snapshot and self.profile.backend == "kubernetes" else None
        return plan_run(self.job, self.profile, run_id=run_id or self.base_id, code_archive=packed,
                        code_digest=self.snapshot.digest if self.snapshot else None, new_folder=self.new_folder)
