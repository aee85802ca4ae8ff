"""Kubernetes as a back end: sends what objects.py makes, and asks the API server for everything else."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import quote

from launcher.backends.base import KeepsObjects, LeavesOrphans, LostNode, Orphan, RepairsNodes, Sent, Submission
from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.create import check_objects, create_objects, load_objects
from launcher.backends.kubernetes.faults import KubernetesFaults
from launcher.backends.kubernetes.logs.kube_source import KubeSource
from launcher.backends.kubernetes.logs.pods import read_logs
from launcher.backends.kubernetes.logs.source import look_every_s
from launcher.backends.kubernetes.lost_nodes import give_up, lost_nodes
from launcher.backends.kubernetes.observer import FRESH_S, Object, Observer, Seen, owner_kind
from launcher.backends.kubernetes.orphans import Place, find_orphans, place_of, places_of
from launcher.backends.kubernetes.profile import KubernetesProfile
from launcher.backends.kubernetes.status import job_status
from launcher.errors import BackendError, LaunchError, RunIdTakenError
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State
from launcher.runs.store import RunStore

DELETE_SPARE_S = 60


class KubernetesBackend(KubernetesFaults, RepairsNodes, KeepsObjects, LeavesOrphans):
    """Runs jobs in the clusters of the user's kubeconfig. The client is loaded when a cluster is first asked."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ
        self._clients: dict[str | None, Kube] = {}
        self._observers: dict[Place, Observer] = {}
        self._lock = threading.Lock()

    def check(self, rendered: Rendered) -> None:
        """A dry run of every object, and of a pod: only a pod meets quotas, Pod Security and accounts."""
        with _id_taken():
            check_objects(self._kube(_profile(rendered).context), load_objects(rendered.text))

    def place(self, rendered: Rendered) -> dict[str, str]:
        """The context by its name, since the current one may be another tomorrow."""
        plan, profile = rendered.plan, _profile(rendered)
        secret = {"secret": plan.run_id} if plan.secrets else {}
        return {"context": self._kube(profile.context).context, "namespace": profile.namespace,
                "kubernetes_kind": profile.kubernetes_kind, "repair": profile.repair, **secret}

    def submit(self, rendered: Rendered, submission: Submission) -> Sent:
        """The Job first, because its uid makes it the owner of the others; its pods wait for them."""
        profile = _profile(rendered)
        kube = self._kube(profile.context)
        with _id_taken():
            uid = create_objects(kube, load_objects(rendered.text), submission.secrets)
        return Sent(f"k8s://{quote(kube.context, safe=':@')}/{profile.namespace}/{rendered.plan.run_id}", {"uid": uid})

    def status(self, run: Run) -> JobStatus:
        """What the Job, its pods and their events say."""
        observer = self.observer(run)
        seen = observer.look(run)
        return self._status(run, seen, observer.events(seen))

    def statuses(self, runs: Sequence[Run], warn: Callable[[str], None]) -> dict[str, JobStatus]:
        """One query a namespace, without events."""
        found: dict[str, JobStatus] = {}
        for place in sorted({place_of(run) for run in runs}, key=str):
            some = [run for run in runs if place_of(run) == place]
            try:
                seen = self.observer(some[0]).look_at(some)
            except BackendError as error:
                warn(f"{place}: {error.message}")
                found |= dict.fromkeys((run.run_id for run in some), JobStatus(State.UNKNOWN, error.message))
                continue
            found |= {run.run_id: self._status(run, seen[run.run_id], []) for run in some}
        return found

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """From the pods while there are any, and from the archive in the run folder."""
        return self._read_logs(run, query, threading.Event())

    def cancel(self, run: Run) -> None:
        """Delete the Job and all that it owns, after its logs were read; waits for the pods' last lines."""
        kube, namespace = self._cluster(run)
        if self.observer(run).look(run).is_over:
            return
        marker = self.store.folder(run.run_id) / "cancelled"
        marker.touch()
        self._archive(run, follow=False, limit_s=DELETE_SPARE_S)
        stop = threading.Event()
        reader = threading.Thread(target=self._archive, args=(run,), daemon=True, kwargs={
            "follow": True, "limit_s": run.grace_s + DELETE_SPARE_S, "stop": stop})
        reader.start()  # before the pods are told to end: one that ends at once takes its log with it
        try:
            kube.delete(owner_kind(run), namespace, run.run_id, propagation="Foreground")
        except BackendError:
            marker.unlink(missing_ok=True)
            stop.set()
            raise
        reader.join()

    def drop_secrets(self, run: Run) -> None:
        """Delete the Secret of a Job that is still there; another one of that name is not ours."""
        name = run.place.get("secret")
        if name is None:
            return
        kube, namespace = self._cluster(run)
        owner = kube.get(owner_kind(run), namespace, run.run_id)
        if owner is None or owner["metadata"]["uid"] != run.place.get("uid"):
            return
        try:
            kube.delete("Secret", namespace, name, propagation="Background")
        except BackendError as error:
            raise BackendError(f"Secret {name!r} stays until its {owner_kind(run)} goes, a week after the end: "
                               f"{error.message}", error.hint) from error

    def discard(self, run: Run) -> None:
        """Delete the ended Job with all that it owns. Not one that this machine cannot tell from another's: its submit
        was killed; Kubernetes removes it a week after its end."""
        kube, namespace = self._cluster(run)
        if uid := run.place.get("uid"):
            kube.delete(owner_kind(run), namespace, run.run_id, propagation="Background", uid=uid)

    def repairs_unasked(self, run: Run) -> bool:
        """The profile's `repair: auto`."""
        return run.place["repair"] == "auto"

    def lost(self, run: Run) -> list[LostNode]:
        """Nodes that are to go from machines that do not answer: nobody replaces them (lost_nodes.py says why)."""
        return lost_nodes(self.observer(run).look(run, FRESH_S).pods, time.time())

    def repair(self, run: Run, lost: list[LostNode]) -> None:
        """Give their pods up; the Job makes new ones."""
        kube, namespace = self._cluster(run)
        for node in lost:
            give_up(kube, namespace, node)

    def orphans(self, profile: Profile | None, warn: Callable[[str], None]) -> list[Orphan]:
        """Labelled objects whose Job or JobSet is gone."""
        found: dict[Orphan, None] = {}  # the current context has a name, too, and may be looked at twice
        for place in places_of(self.store.all(), profile):
            try:
                found |= dict.fromkeys(find_orphans(self._kube(place.context), place.namespace, warn))
            except BackendError as error:
                warn(f"{place}: {error.message}")
        return list(found)

    def remove(self, orphan: Orphan) -> None:
        """Delete the object that was seen, and what it owns."""
        place, uid = Place(orphan.key[0], orphan.key[1]), orphan.key[2]
        self._kube(place.context).delete(orphan.kind, place.namespace, orphan.name, propagation="Background", uid=uid)

    def _archive(self, run: Run, *, follow: bool, limit_s: float, stop: threading.Event | None = None) -> None:
        """Read the logs into the run folder; with `follow` until the pods are gone. What cannot be read (the pod of
        a lost machine) keeps nobody from cancelling."""
        stop = stop or threading.Event()
        timer = threading.Timer(limit_s, stop.set)
        timer.start()
        try:
            with suppress(LaunchError):
                for _ in self._read_logs(run, LogQuery(follow=follow), stop):
                    pass
        finally:
            timer.cancel()

    def _read_logs(self, run: Run, query: LogQuery, stop: threading.Event) -> Iterator[Batch]:
        nodes = query.nodes(run.nodes, run.processes_per_node)
        source = KubeSource(self.observer(run), run, stop, look_every_s(len(nodes)))
        folder = self.store.folder(run.run_id) / "logs"
        return read_logs(source, folder, nodes, query, picks=query.picks(run.processes_per_node), stop=stop)

    def _status(self, run: Run, seen: Seen, events: list[Object]) -> JobStatus:
        if (self.store.folder(run.run_id) / "cancelled").exists():
            return JobStatus(State.CANCELLED, "cancelled by the user") if seen.job is None else JobStatus(
                State.RUNNING, "being cancelled")
        if seen.job is None:
            return JobStatus(State.UNKNOWN, "its Job is gone: someone deleted it, or it ended a week ago", gone=True)
        return job_status(seen.job, seen.pods, events, run.exit_codes)

    def observer(self, run: Run) -> Observer:
        """One for each namespace, with one client for each context."""
        place = place_of(run)
        with self._lock:
            if place not in self._observers:
                self._observers[place] = Observer(self._kube(place.context), place.namespace)
            return self._observers[place]

    def _cluster(self, run: Run) -> tuple[Kube, str]:
        place = place_of(run)
        return self._kube(place.context), place.namespace

    def _kube(self, context: str | None) -> Kube:
        if context not in self._clients:
            self._clients[context] = Kube(self.environ, context)
        return self._clients[context]


def _profile(rendered: Rendered) -> KubernetesProfile:
    profile = rendered.plan.profile
    assert isinstance(profile, KubernetesProfile)  # noqa: S101
    return profile


@contextmanager
def _id_taken() -> Iterator[None]:
    """An object of this name is there already: another machine's run, since this one has claimed the id here."""
    try:
        yield
    except ApiError as error:
        if error.code == 409:
            raise RunIdTakenError(error.message, error.hint) from error
        raise
