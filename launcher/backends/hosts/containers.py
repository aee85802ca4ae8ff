"""Containers that runs have left on this machine: those with launch's label, the run of which has ended."""

from collections.abc import Callable, Iterator

from launcher.backends import processes as shell
from launcher.backends.base import Backend, Orphan
from launcher.backends.hosts.script import RUN_DIR_LABEL
from launcher.errors import BackendError
from launcher.runs.store import RunStore

RUNTIMES = ("podman", "docker")


def orphan_containers(backend: Backend, name: str, store: RunStore, environ: dict[str, str],
                     warn: Callable[[str], None]) -> list[Orphan]:
    """Containers of runs in `store` that the back end called `name` has ended. Those of a run that lives, and those of
    other stores, are not ours to remove."""
    runs = {str(store.folder(run.run_id)): run for run in store.all() if run.backend == name}
    found = []
    for runtime in filter(shell.has_command, RUNTIMES):
        try:
            for container, folder in _labelled(runtime, environ):
                if folder in runs and (state := backend.status(runs[folder]).state).ended:
                    why = f"its run {runs[folder].run_id} has {state}"
                    found.append(Orphan("container", container, runtime, why, (runtime, container)))
        except BackendError as error:
            warn(f"{runtime}: its containers could not be listed: {error.message}")
    return found


def remove_container(orphan: Orphan, environ: dict[str, str]) -> None:
    """Remove it, running or not; it may be gone already. Raises BackendError when it cannot be."""
    runtime, container = orphan.key
    done = shell.try_command([runtime, "rm", "--force", container], env=environ)
    if done.returncode and "no such container" not in done.stderr.lower():
        raise BackendError(f"{runtime}: {done.stderr.strip()}", f"see what holds it: {runtime} inspect {container}")


def _labelled(runtime: str, environ: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names of launch's containers, and the folders of their runs."""
    listed = shell.run_command([runtime, "ps", "--all", f"--filter=label={RUN_DIR_LABEL}", "--format={{.Names}}"],
                               env=environ)
    label = f'{{{{index .Config.Labels "{RUN_DIR_LABEL}"}}}}'
    for container in listed.split():
        shown = shell.try_command([runtime, "inspect", f"--format={label}", container], env=environ)
        if shown.returncode == 0:  # else it has just ended
            yield container, shown.stdout.strip("\n")
