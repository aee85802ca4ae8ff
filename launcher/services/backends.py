"""The back ends that a command works with."""

import os

from launcher.backends.base import Backend
from launcher.backends.registry import load_backend
from launcher.runs.record import Run
from launcher.runs.store import RunStore


class Backends:
    """Each is loaded when it is first needed, and then serves all runs: it owns its clients and what they have seen."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._loaded: dict[str, Backend] = {}

    def named(self, name: str) -> Backend:
        """Raises BackendError for a name that no installed back end has."""
        if name not in self._loaded:
            self._loaded[name] = load_backend(name, self.store, dict(os.environ))
        return self._loaded[name]

    def of(self, run: Run) -> Backend:
        """The one that a run was sent to. Raises BackendError."""
        return self.named(run.backend)
