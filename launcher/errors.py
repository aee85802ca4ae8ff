"""What can go wrong, and the exit code it ends with.

LaunchError            1
+-- SpecError          2  the job file, the profile or the command line is wrong; carries every problem found
+-- BackendError       3  a cluster, a runtime or this machine refused
|   +-- RunIdTakenError   somebody else's run has this id there
+-- NotFoundError      4  no such run
+-- JobFailedError     5  the job itself ended badly
"""


class LaunchError(Exception):
    """An error a user can act on: `message` says what and where, `hint` the next command."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(LaunchError):
    """One or more mistakes in what the user wrote; one line each in `message`."""

    exit_code = 2


class BackendError(LaunchError):
    """The cluster said no, or could not be reached."""

    exit_code = 3


class RunIdTakenError(BackendError):
    """The cluster has a run of this id that this machine knows nothing of."""


class NotFoundError(LaunchError):
    """The run that was asked for is not known."""

    exit_code = 4


class JobFailedError(LaunchError):
    """The job was launched and failed."""

    exit_code = 5
