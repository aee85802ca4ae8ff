"""Runs the pods that have a node: one thread per pod, real processes inside."""

from __future__ import annotations

import copy
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

from .clock import timestamp
from .containers import ContainerRunner
from .environment import MissingReferenceError
from .gc import is_terminal
from .logs import ContainerLog
from .store import Object, set_condition
from .volumes import Volume, prepare_volumes

if TYPE_CHECKING:
    from .cluster import FakeCluster

_IDLE_S = 0.2
_ENDING_S = 0.02


class Kubelet:
    """The kubelets of all nodes."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.store = cluster.store
        self.logs: dict[tuple[str, str], list[ContainerLog]] = {}
        self.stopping = False
        self._workers: dict[str, PodWorker] = {}
        self._gone_at: dict[tuple[str, str], float] = {}

    def sync(self) -> None:
        """Take over newly assigned pods; the caller holds the lock."""
        for pod in self.store.select("pods"):
            uid = pod["metadata"]["uid"]
            if pod["spec"].get("nodeName") and uid not in self._workers and not is_terminal(pod):
                self._workers[uid] = PodWorker(self, pod)
                self._workers[uid].start()

    def note_gone(self, namespace: str, name: str) -> None:
        self._gone_at[namespace, name] = time.monotonic()

    def has_just_gone(self, namespace: str, name: str) -> bool:
        """Its log files are still being removed, for as long as `log_leftover_s` says."""
        gone_at = self._gone_at.get((namespace, name), float("-inf"))
        return time.monotonic() - gone_at < self.cluster.log_leftover_s

    def worker(self, namespace: str, name: str) -> PodWorker:
        """The thread that runs this pod; KeyError if none does."""
        with self.store.lock:
            pod = self.store.get("pods", namespace, name)
            if pod is None:
                raise KeyError(f"no pod {namespace}/{name}")
            return self._workers[pod["metadata"]["uid"]]

    def on_node(self, node: str) -> list[PodWorker]:
        return [worker for worker in self._workers.values() if worker.node == node]

    def stop(self) -> None:
        self.stopping = True
        self.wake()
        for worker in self._workers.values():
            worker.join(10)

    def wake(self) -> None:
        with self.store.changed:
            self.store.changed.notify_all()

    def record(self, pod: Object, reason: str, message: str) -> None:
        with self.store.lock:
            self.store.record_event("pods", pod, reason, message)

    def warn(self, pod: Object, reason: str, message: str) -> None:
        with self.store.lock:
            self.store.record_event("pods", pod, reason, message, "Warning")


class PodWorker(threading.Thread):
    """One pod from its assignment to a node until its containers are down."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        super().__init__(name=f"pod-{pod['metadata']['name']}", daemon=True)
        self.node = pod["spec"]["nodeName"]
        self._kubelet = kubelet
        self._store = kubelet.store
        self._meta = pod["metadata"]
        self._folder = kubelet.cluster.root / "pods" / self._meta["uid"]
        self._volumes: dict[str, Volume] | None = None
        self._kill_at: float | None = None
        self._eviction: dict[str, Any] = {}
        spec = pod["spec"]
        policy = spec["restartPolicy"]
        inits = spec.get("initContainers") or []
        once = "Never" if policy == "Never" else "OnFailure"
        self._inits = [self._runner(item, restart=once) for item in inits]
        self._mains = [self._runner(item, restart=policy) for item in spec["containers"]]
        for runner in self._mains if inits else []:
            runner.state = {"waiting": {"reason": "PodInitializing"}}

    def _runner(self, container: dict[str, Any], *, restart: str) -> ContainerRunner:
        folder = self._folder / "containers" / container["name"]
        return ContainerRunner(self._kubelet, container, folder, restart=restart)

    def signal(self, number: int, *, oom: bool = False) -> None:
        for runner in self._mains:
            runner.signal(number, oom=oom)

    def evict_for_disk(self, message: str) -> None:
        """End the pod as a kubelet does that ran out of local storage."""
        self._eviction = {"reason": "Evicted", "message": message}
        self._kubelet.wake()

    def run(self) -> None:
        try:
            while not self._step():
                self._sleep()
        except BaseException as error:
            self._kubelet.cluster.bug = error
            raise
        finally:
            for runner in (*self._inits, *self._mains):
                runner.kill_and_wait()
            self._kubelet.note_gone(self._meta["namespace"], self._meta["name"])
            shutil.rmtree(self._folder / "volumes", ignore_errors=True)

    def _sleep(self) -> None:
        with self._store.changed:
            busy = self._kill_at is not None or self._waits_for_restart()
            self._store.changed.wait(_ENDING_S if busy else _IDLE_S)

    def _waits_for_restart(self) -> bool:
        return any(not item.is_running and not item.is_done for item in self._mains)

    def _step(self) -> bool:
        """One round of looking and acting; True when nothing is left to do."""
        if self._kubelet.stopping:
            return True
        if self._kubelet.cluster.nodes.is_lost(self.node):
            for runner in (*self._inits, *self._mains):
                runner.kill()
            return False
        pod = self._snapshot()
        if pod is None or self._eviction:
            for runner in (*self._inits, *self._mains):
                runner.kill()
        if pod is None:
            return True
        deleted = "deletionTimestamp" in pod["metadata"]
        if deleted or self._eviction:
            self._stop_containers(pod)
        for runner in self._due():
            if runner.is_running or not (deleted or self._eviction):
                self._step_container(runner, pod)
        return self._publish(ending=deleted or bool(self._eviction))

    def _snapshot(self) -> Object | None:
        with self._store.lock:
            pod = self._store.get("pods", self._meta["namespace"], self._meta["name"])
            same = pod is not None and pod["metadata"]["uid"] == self._meta["uid"]
            return copy.deepcopy(pod) if same else None

    def _due(self) -> list[ContainerRunner]:
        """Init containers come one by one, the others together after them."""
        for runner in self._inits:
            if not runner.is_done:
                return [runner]
            if runner.exit_code:
                return []
        return self._mains

    def _step_container(self, runner: ContainerRunner, pod: Object) -> None:
        if self._volumes is None:
            try:
                with self._store.lock:
                    claims = self._kubelet.cluster.root / "volumes"
                    folder = self._folder / "volumes"
                    self._volumes = prepare_volumes(self._store, pod, folder, claims)
            except MissingReferenceError as error:
                self._kubelet.warn(pod, "FailedMount", str(error))
                return
        runner.step(pod, self._volumes)

    def _stop_containers(self, pod: Object) -> None:
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
        now = time.monotonic()
        runners = (*self._inits, *self._mains)
        if self._kill_at is None:
            self._kill_at = now + grace
            for runner in runners:
                runner.terminate()
        self._kill_at = min(self._kill_at, now + grace)
        if now >= self._kill_at:
            for runner in runners:
                runner.kill()

    def _publish(self, *, ending: bool) -> bool:
        """Write the status if it changed; True once the phase is final."""
        with self._store.lock:
            pod = self._store.get("pods", self._meta["namespace"], self._meta["name"])
            if pod is None or pod["metadata"]["uid"] != self._meta["uid"]:
                return False
            before = copy.deepcopy(pod["status"])
            phase = self._phase(ending=ending)
            self._write_status(pod, phase)
            if pod["status"] != before:
                self._store.touch("pods", pod)
            return phase in ("Succeeded", "Failed")

    def _phase(self, *, ending: bool) -> str:
        runners = (*self._inits, *self._mains)
        if any(runner.exit_code for runner in self._inits):
            return "Failed"
        if ending and not any(runner.is_running for runner in runners):
            clean = all(runner.exit_code == 0 for runner in runners) and not self._eviction
            return "Succeeded" if clean else "Failed"
        if all(runner.is_done for runner in self._mains):
            return "Failed" if any(runner.exit_code for runner in self._mains) else "Succeeded"
        started = any(item.is_running or item.restarts or item.is_done for item in self._mains)
        return "Running" if started else "Pending"

    def _write_status(self, pod: Object, phase: str) -> None:
        status = pod["status"]
        status.update(phase=phase, hostIP="127.0.0.1", podIP="127.0.0.1", **self._eviction)
        status.setdefault("startTime", timestamp())
        status["containerStatuses"] = [runner.status() for runner in self._mains]
        if self._inits:
            status["initContainerStatuses"] = [runner.status() for runner in self._inits]
        self._write_conditions(pod, phase)

    def _write_conditions(self, pod: Object, phase: str) -> None:
        pending = [runner.name for runner in self._inits if runner.exit_code != 0]
        if pending:
            message = f"containers with incomplete status: [{' '.join(pending)}]"
            set_condition(pod, "Initialized", "False", "ContainersNotInitialized", message)
        else:
            set_condition(pod, "Initialized", "True", "")
        ready = phase == "Running" and all(runner.is_running for runner in self._mains)
        reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
        reason = "" if ready else reason or "ContainersNotReady"
        for name in ("ContainersReady", "Ready"):
            set_condition(pod, name, "True" if ready else "False", reason)
