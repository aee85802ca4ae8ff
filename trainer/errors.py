"""What can go wrong in the trainer, and the exit code a scheduler sees.

The codes are a contract with the launcher's restart rules: 78 is never retried, 75 is retried without
spending the budget of `restarts`, everything else counts as a failure. So 75 must always be a stop that somebody
requested: trainer.node.entrypoint passes it on only where the processes' reports say so.

TrainError             1
+-- ConfigError       78  config or data is wrong: the same job would fail again
+-- DivergedError     70  the loss is not a number any more
+-- PreemptedError    75  stopped on request; nothing is lost: saved, or nothing was trained yet
+-- PeerLostError      1  another process of the job is gone
+-- SaveError          1  a checkpoint could not be written
+-- UnreachableError   1  a server or file system did not answer: the same job may find it at the next start
"""


class TrainError(Exception):
    """An error a user can act on: `message` says what and where, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TrainError):
    """The configuration, the data or the model cannot work; retrying would not help."""

    exit_code = 78


class DivergedError(TrainError):
    """Training produced NaN or infinity."""

    exit_code = 70


class PreemptedError(TrainError):
    """A signal asked the trainer to stop, and what it has trained is in a checkpoint."""

    exit_code = 75


class PeerLostError(TrainError):
    """Another process of the job is gone; the message names it."""


class SaveError(TrainError):
    """A checkpoint could not be written; older ones are as they were."""


class UnreachableError(TrainError):
    """What the job reads could not be reached; restarts try again."""
