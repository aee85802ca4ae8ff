"""The fake cluster as tests see it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from . import gc
from .admission import ENFORCE
from .api import Api
from .faults import Faults
from .hosts import Hosts
from .jobs import JobController
from .jobsets import JobSetController
from .kubelet import Kubelet
from .logs import ContainerLog
from .nodes import GPU, Nodes
from .resources import JOB_SET_GROUP, RESOURCES
from .server import ApiServer
from .store import Store

_TICK_S = 0.05
REPOSITORY = Path(__file__).parents[3]


class FakeCluster:
    """A cluster with an API server, a Job controller and kubelets that run processes.

    Use as a context manager. Attributes a test may set at any time:
    backoff_s        delay before the first replacement or restart (10 s in a real one)
    create_retry_s   delay before the Job controller tries again after a refusal
    log_leftover_s   how long the log of a pod that has gone answers 200 with an error text
    log_tick_ns      step of the clock that stamps log lines; lines within one have equal stamps
    split_utf8       cut streamed logs into tiny chunks, also inside a character
    image_env        variables that every image is taken to define
    image_entrypoint command of containers that give none
    shared_paths     folders of this machine that every container sees, live and writable, at
                     the same place (it sees the rest of the machine as it was at its start)
    kept_paths       folders of this machine that every container sees as they were at its start,
                     also where its own /tmp would hide them: this repository and its Python
    run_as_user      honour runAsUser and runAsNonRoot (else all run as root)
    token            bearer token that requests must carry, if any
    absent_groups    API groups that are not installed; JobSet's at first
    """

    def __init__(self, root: Path, nodes: int = 3, token: str | None = None) -> None:
        self.root = Path(root).resolve()
        self.token = token
        self.backoff_s = 0.5
        self.create_retry_s = 0.5
        self.log_leftover_s = 0.0
        self.log_tick_ns = 1
        self.split_utf8 = False
        self.run_as_user = True
        self.shared_paths: list[Path] = []
        self.kept_paths = [REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        self.image_entrypoint: list[str] = []
        self.absent_groups = frozenset({JOB_SET_GROUP})
        programs = [os.path.dirname(sys.executable), "/usr/local/sbin", "/usr/local/bin"]
        self.image_env = {"PATH": ":".join([*programs, "/usr/sbin:/usr/bin:/sbin:/bin"])}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.store = Store()
        self.api = Api(self.store)
        self.faults = Faults()
        with self.store.lock:
            self.nodes = Nodes(self.store, nodes)
        self.hosts = Hosts(self.store, self.root / "hosts")
        self.kubelet = Kubelet(self)
        self._jobs = JobController(self)
        self._job_sets = JobSetController(self)
        self._stopping = False
        self.bug: BaseException | None = None
        self._loop = threading.Thread(target=self._control, name="control-loop", daemon=True)

    def __enter__(self) -> FakeCluster:
        self.root.mkdir(parents=True, exist_ok=True)
        for name in ("default", "kube-system"):
            self.create("namespaces", {"metadata": {"name": name}})
        self._server = ApiServer(self)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.kubeconfig = self.root / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig(), indent=2))
        self._loop.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything; a bug met in the fake itself is raised here at the latest."""
        self._stopping = True
        self.kubelet.stop()
        self._loop.join()
        self._server.stop()
        shutil.rmtree(self.root / "pods", ignore_errors=True)
        if self.bug:
            raise self.bug

    def _kubeconfig(self) -> dict[str, Any]:
        user = {"token": self.token} if self.token else {}
        context = {"cluster": "fake", "user": "fake", "namespace": "default"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": user}],
            "contexts": [{"name": "fake", "context": context}],
            "current-context": "fake",
        }

    def _control(self) -> None:
        """The controllers, one after the other, whenever something changed."""
        try:
            while not self._stopping:
                with self.store.changed:
                    version = self.store.version
                    self._job_sets.sync()
                    self._jobs.sync()
                    self.nodes.sync()
                    gc.collect(self.store)
                    self.hosts.sync()
                    self.kubelet.sync()
                    if self.store.version == version:
                        self.store.changed.wait(_TICK_S)
        except BaseException as error:
            self.bug = error
            raise

    def create(self, plural: str, body: dict[str, Any], namespace: str = "") -> dict[str, Any]:
        """Create an object without HTTP, for setting the scene."""
        return self.api.create(RESOURCES[plural], namespace, body, {})

    def enforce_restricted(self, namespace: str) -> None:
        """Refuse pods that break the "restricted" Pod Security level."""
        self._label_namespace(namespace, ENFORCE, "restricted")

    def _label_namespace(self, namespace: str, key: str, value: str) -> None:
        body = {"metadata": {"labels": {key: value}}}
        self.api.patch(RESOURCES["namespaces"], "", namespace, body, {})

    def set_quota(self, namespace: str, hard: dict[str, str], name: str = "q") -> None:
        body = {"metadata": {"name": name}, "spec": {"hard": hard}}
        self.create("resourcequotas", body, namespace)

    def set_gpus(self, node: str, count: int) -> None:
        with self.store.lock:
            self.nodes.set_capacity(node, GPU, str(count))

    def kill_pod(self, namespace: str, name: str, signal: int, *, oom: bool = False) -> None:
        """Signal the main processes of a pod; `oom` makes the reason OOMKilled."""
        self.kubelet.worker(namespace, name).signal(signal, oom=oom)

    def evict(self, namespace: str, name: str) -> None:
        """What `kubectl drain` does to a pod."""
        self.api.evict(RESOURCES["pods"], namespace, name)

    def evict_for_disk(self, namespace: str, name: str, message: str) -> None:
        self.kubelet.worker(namespace, name).evict_for_disk(message)

    def lose_node(self, node: str, evict_after_s: float = 0.3) -> None:
        """Cut a node off and kill all on it; its pods' statuses freeze."""
        with self.store.lock:
            self.nodes.lose(node, evict_after_s)

    def restore_node(self, node: str) -> None:
        with self.store.lock:
            self.nodes.restore(node)

    def rotate_logs(self, namespace: str, name: str) -> None:
        """Hide the lines so far from new log requests."""
        for log in self._logs(namespace, name):
            log.rotate()

    def log_size(self, namespace: str, name: str) -> int:
        """Lines that a pod's containers have written."""
        return sum(log.size for log in self._logs(namespace, name))

    def _logs(self, namespace: str, name: str) -> list[ContainerLog]:
        with self.store.lock:
            pod = self.api.get(RESOURCES["pods"], namespace, name)
            logs = self.kubelet.logs.items()
            return [instances[-1] for (uid, _), instances in list(logs) if uid == pod["metadata"]["uid"]]

    def drop_connections(self, *, cleanly: bool = False) -> None:
        self.faults.drop_connections(cleanly=cleanly)

    def go_away(self, seconds: float) -> None:
        self.faults.go_away(seconds)

    def throttle(self, count: int) -> None:
        self.faults.throttle(count)

    def expire_versions(self) -> None:
        """Forget the past: lists and watches that go on from an older resourceVersion answer 410."""
        with self.store.lock:
            self.store.forget_history()

    def deny(self, path_regex: str, why: str) -> None:
        """An admission webhook that refuses whatever is made under these paths; dry runs too."""
        self.faults.deny(path_regex, why)

    def fail_once(self, status: int, path_regex: str) -> None:
        self.faults.fail_once(status, path_regex)
