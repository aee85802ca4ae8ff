"""Being told to stop: TERM, USR1 or INT, at any moment, once.

A thread takes the signals from Python's wake-up descriptor, so that it hears them even while the main thread waits in
a collective. While there is nothing to save it ends the process at once; later the training loop asks `told` at the end
of every step. Imports no torch: libraries take longer to load than some graces last.
"""

import os
import signal
import threading
from collections.abc import Callable

from trainer.errors import PreemptedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PREEMPTED = PreemptedError.exit_code


class Stop:
    """Whether this process was told to stop. `end(code, text)` ends it at once; `farewell`, when set, goes first."""

    def __init__(self, end: Callable[[int, str], None]) -> None:
        self.requested = False
        self.farewell: Callable[[int, str], None] = lambda code, text: None
        self._end = end
        self._ending = threading.Lock()
        self._can_save = False

    def install(self) -> None:
        """Take the signals from now on. Call it in the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()

    def wait_for_step_end(self) -> None:
        """From now on there is something to save: a signal is only noted. Does not return when one came before."""
        with self._ending:
            self._can_save = True

    def _listen(self, descriptor: int) -> None:
        while number := os.read(descriptor, 1):
            if number[0] in STOP_SIGNALS:
                self.requested = True
            with self._ending:
                if self.requested and not self._can_save:
                    text = "told to stop before the first step: nothing to save"
                    self.farewell(PREEMPTED, text)
                    self._end(PREEMPTED, text)
