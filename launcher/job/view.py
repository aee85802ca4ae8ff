"""What a job sees of the paths that it names. Pure: whether something is there cannot be known from here."""

import posixpath
from dataclasses import dataclass
from fnmatch import fnmatchcase

from launcher.job.profile import Profile
from launcher.job.spec import Mount
from launcher.job.types import is_below


@dataclass(frozen=True)
class View:
    """`code`: the files that are sent with the job."""

    profile: Profile
    mounts: tuple[Mount, ...]
    job_dir: str
    code: tuple[str, ...] = ()

    def keeps(self, path: str) -> bool:
        """Whether the path leads out of the job's container: what is there was there before, and stays."""
        kept = self.profile.kept(self.mounts, self.job_dir)
        at = self.profile.seen_at(path, self.job_dir)
        return kept is None or any(is_below(at, folder) for folder in kept)

    def finds(self, path: str) -> bool:
        """Whether something could be at the path when the job starts, besides what its image has."""
        at = self.profile.seen_at(path, self.job_dir)
        in_code = (posixpath.relpath(at, folder) for folder in self.profile.code_folders if is_below(at, folder))
        return self.keeps(path) or any(self._sends(name) for name in in_code)

    def _sends(self, name: str) -> bool:
        """Whether a file, a folder or a glob of that name comes with the code."""
        return any(name in (".", file) or file.startswith(f"{name}/") or fnmatchcase(file, name) for file in self.code)
