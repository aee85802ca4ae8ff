"""What a script of ours finds in its run folder, besides what it writes itself."""

from launcher.backends.base import Submission
from launcher.job.secrets import secrets_file
from launcher.runs.store import RunStore, write_whole


def lay_out(store: RunStore, submission: Submission) -> None:
    """The code, and the secrets, which only the user can read. Raises SpecError, LaunchError."""
    if submission.snapshot:
        store.code.use(submission.snapshot, submission.run_dir)
    if submission.secrets:
        write_whole(submission.run_dir / "secrets.env", secrets_file(submission.secrets))
