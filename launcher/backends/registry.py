"""Back ends by name. Another package adds one through the entry-point group `launch.backends`:
`name = "module:BACKEND"`, where BACKEND is a BackendType."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import BackendError, LaunchError
from launcher.plugins import Plugins, load_object

if TYPE_CHECKING:
    from launcher.backends.base import Backend
    from launcher.job.plan import Plan
    from launcher.job.profile import Profile
    from launcher.job.rendered import Rendered
    from launcher.runs.store import RunStore


@dataclass(frozen=True)
class BackendType:
    """Where a back end's parts are, each as `module:name` and imported when it is used: a render loads no client.

    `profile`: its model of a cluster; `render`: a Plan to a Rendered; `adapter`: the Backend, made of a RunStore and
    the environment.
    """

    profile: str
    render: str
    adapter: str

    def profile_model(self) -> "type[Profile]":
        """The pydantic model of its profiles."""
        return load_object(self.profile)  # type: ignore[no-any-return]

    def rendered(self, plan: "Plan") -> "Rendered":
        """What `launch render` prints and what is sent. Raises SpecError for what cannot be rendered."""
        return _part(self.render)(plan)  # type: ignore[no-any-return]

    def backend(self, store: "RunStore", environ: dict[str, str]) -> "Backend":
        """What sends and follows runs."""
        return _part(self.adapter)(store, environ)  # type: ignore[no-any-return]


def _part(place: str) -> Any:
    """Raises LaunchError for one that another package names and has not."""
    try:
        return load_object(place)
    except (ImportError, AttributeError) as error:
        raise LaunchError(f"{place}, a part of a back end, cannot be loaded: {error}",
                          f"fix or uninstall the package that has {place.partition(':')[0]}") from error


BACKENDS: Plugins[BackendType] = Plugins("launch.backends", {
    name: f"launcher.backends.{name}:BACKEND" for name in ("kubernetes", "slurm", "local")},
    "a BackendType", lambda name, found: isinstance(found, BackendType) and found.profile_model() is not None)

# Models of the sections of a job file that are for one back end alone, whose profile names the section as its
# `job_options`. Others come through the entry-point group `launch.options`.
OPTIONS: Plugins[Any] = Plugins("launch.options", {
    "pod": "launcher.backends.kubernetes.overlay:PodOverlay",
    "sbatch": "launcher.backends.slurm.options:JobSection",
}, "a pydantic model", lambda name, found: hasattr(found, "model_fields"))


def load_backend(name: str, store: "RunStore", environ: dict[str, str]) -> "Backend":
    """What sends and follows runs there. Raises BackendError for a name that no installed back end has."""
    if name not in BACKENDS:
        raise BackendError(f"back end {name!r} is not installed; there are {', '.join(BACKENDS.names())}",
                           "install the package that adds it")
    return BACKENDS.load(name).backend(store, environ)
