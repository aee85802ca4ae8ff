"""What a process of its own does in tests; it imports little, and so begins soon."""

import os
import signal

from trainer.errors import ConfigError


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise ConfigError("words", "a hint")
