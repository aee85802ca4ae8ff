"""A checked job with everything that its render depends on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.job.code.snapshot import Snapshot, archive
from launcher.job.kind import Context, Kind, ReadsFiles
from launcher.job.load import dotted
from launcher.job.payload import Payload
from launcher.job.plan import Plan, all_mounts, plan_run
from launcher.job.profile import Profile
from launcher.job.spec import JobSpec
from launcher.job.view import View


@dataclass(frozen=True)
class Prepared:
    """A job, its kind, and the place that it goes to. `new_folder`: it writes to a folder of its own, whatever the job
    names."""

    job: JobSpec
    kind: Kind
    job_dir: Path
    profile: Profile
    snapshot: Snapshot | None
    base_id: str
    cluster: str | None
    new_folder: bool = False
    _payloads: dict[str, Payload] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def notes(self) -> list[str]:
        """What whoever sends it should know."""
        large = [self.snapshot.described()] if self.snapshot and self.snapshot.is_large else []
        unused = [f"{section}: ignored, because it is not for {self.profile.backend}"
                  for section in self.job.backend_sections if section != self.profile.job_options]
        return [*large, *unused, *self.profile.notes(self.job, code=self.snapshot is not None), *self._path_notes()]

    def _path_notes(self) -> Iterator[str]:
        """Of paths that lead nowhere in the job's container, and of results that end with it."""
        if not isinstance(self.kind, ReadsFiles):
            return
        view = View(self.profile, all_mounts(self.job, self.profile), str(self.job_dir),
                    self.snapshot.files if self.snapshot else ())
        for one in self.kind.inputs(self.job.section):
            if not view.finds(one.path):
                yield (f"{dotted((self.kind.key, *one.loc))}: {one.path} is neither below a mount nor in the job's "
                       "code: the job finds it only if its image has it")
        outputs = self.payload(self.base_id).outputs
        if outputs and not view.keeps(outputs.folder):
            paths = ", ".join(mount.path for mount in view.mounts if not mount.read_only)
            yield (f"{dotted((self.kind.key, *self.kind.output_field))}: {outputs.folder} is not below a mount: what "
                   "the job writes there is lost when its container ends, also to a restart; name a folder below one "
                   f"({paths or 'the job has no mounts: add one'})")

    @property
    def owns_folder(self) -> bool:
        """Whether the run writes to a folder that is named after it."""
        return self.new_folder or self.kind.owns_folder(self.job.section)

    def payload(self, run_id: str) -> Payload:
        """What is run under this id."""
        if run_id not in self._payloads:
            context = Context(run_id, self.profile.python, self.job.resources, all_mounts(self.job, self.profile),
                              self.new_folder)
            self._payloads[run_id] = self.kind.payload(self.job.section, context)
        return self._payloads[run_id]

    def plan(self, run_id: str | None = None) -> Plan:
        """The plan under a run id; by default the hash of all that the render depends on."""
        packed = archive(self.snapshot) if self.snapshot and self.profile.sends_code else None
        run_id = run_id or self.base_id
        return plan_run(self.job, self.profile, self.payload(run_id), run_id=run_id, code_archive=packed,
                        code_digest=self.snapshot.digest if self.snapshot else None)
