"""Back ends by name, imported when used: a Slurm user never loads the Kubernetes client."""

import importlib
from typing import cast

from launcher.backends.base import Backend
from launcher.runs import RunStore
from launcher.spec import BackendName

BACKEND_CLASSES: dict[BackendName, str] = {
    "kubernetes": "launcher.backends.k8s:KubernetesBackend",
    "slurm": "launcher.backends.slurm:SlurmBackend",
    "local": "launcher.backends.local:LocalBackend",
}


def load_backend(name: BackendName, store: RunStore, environ: dict[str, str]) -> Backend:
    """The back end called `name`."""
    module, _, attribute = BACKEND_CLASSES[name].partition(":")
    return cast(Backend, getattr(importlib.import_module(module), attribute)(store, environ))
