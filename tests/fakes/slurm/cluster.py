"""A fake Slurm cluster for tests: its commands are put first on PATH, and a test changes the weather."""

import os
from pathlib import Path

BIN = Path(__file__).parent / "bin"


class FakeSlurm:
    """State in `folder`; see fake_slurm.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environ(self) -> dict[str, str]:
        """What a command needs to see this cluster."""
        return {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM_DIR": str(self.folder)}

    def calls(self, *names: str) -> list[str]:
        """The commands of these names that were called so far, with their first two words."""
        called = (self.folder / "calls").read_text().splitlines()
        return [line for line in called if line.split()[0] in names]

    def hold(self, reason: str) -> None:
        """Jobs wait from now on."""
        (self.folder / "pending").write_text(reason)

    def release(self) -> None:
        """Jobs start."""
        (self.folder / "pending").unlink()

    def end_jobs_as(self, state: str, exit_code: str) -> None:
        """Whatever a job's script returns, this is how Slurm says that it ended."""
        (self.folder / "end_as").write_text(f"{state} {exit_code}")

    def keep_accounts(self) -> None:
        """sacct works."""
        (self.folder / "accounting").touch()

    def forget(self, job_id: str) -> None:
        """scontrol knows the job no more (MinJobAge)."""
        (self.folder / "jobs" / job_id / "forgotten").touch()

    def go_down(self) -> None:
        """No daemon answers."""
        (self.folder / "down").touch()

    def come_back(self) -> None:
        """They answer again."""
        (self.folder / "down").unlink()

    def be_one_of_several(self, name: str) -> None:
        """Commands reach other clusters, too, and find this one by its name."""
        (self.folder / "cluster").write_text(name)

    def lose_answers(self) -> None:
        """Jobs are taken, but sbatch does not hear of it."""
        (self.folder / "lose_answers").touch()
