"""Back ends by name, imported when used: a Slurm user never loads the Kubernetes client, and a render loads none."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from launcher.job.plan import Plan
from launcher.job.spec import BackendName

if TYPE_CHECKING:
    from launcher.backends.base import Backend
    from launcher.runs.store import RunStore

BACKEND_CLASSES: dict[BackendName, str] = {
    "kubernetes": "launcher.backends.kubernetes.backend:KubernetesBackend",
    "slurm": "launcher.backends.slurm.backend:SlurmBackend",
    "local": "launcher.backends.local.backend:LocalBackend",
}
RENDERERS: dict[BackendName, str] = {
    "kubernetes": "launcher.backends.kubernetes.objects:render_k8s",
    "slurm": "launcher.backends.slurm.script:render_slurm",
    "local": "launcher.backends.local.script:render_local",
}


def load_backend(name: BackendName, store: "RunStore", environ: dict[str, str]) -> "Backend":
    """The back end called `name`."""
    return cast("Backend", _load(BACKEND_CLASSES[name])(store, environ))


def load_renderer(name: BackendName) -> Callable[[Plan], str]:
    """What the back end called `name` renders with."""
    return cast(Callable[[Plan], str], _load(RENDERERS[name]))


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
