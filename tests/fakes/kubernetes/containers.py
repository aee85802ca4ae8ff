"""The life of one container: waiting, running, terminated, perhaps again."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clock import timestamp
from .environment import MissingReferenceError, build_env, expand
from .logs import ContainerLog, LogQuery
from .sandbox import Mount, ProcessSpec, Sandbox
from .store import Object
from .volumes import Volume, container_mounts

if TYPE_CHECKING:
    from .kubelet import Kubelet

_IMAGE = re.compile(r"[a-z0-9]([a-z0-9._/:-]*[a-z0-9])?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_IMAGE_USER = 1000
_MESSAGE_LIMIT = 4096


class ContainerRunner:
    """Moves one container on each time `step` is called; `state` is for the status."""

    def __init__(self, kubelet: Kubelet, container: dict[str, Any], folder: Path, *, restart: str) -> None:
        self.name = container["name"]
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.last_state: dict[str, Any] = {}
        self.restarts = 0
        self.exit_code: int | None = None
        self._kubelet = kubelet
        self._container = container
        self._folder = folder
        self._restart = restart
        self._sandbox: Sandbox | None = None
        self._log = ContainerLog(kubelet.cluster.log_tick_ns)
        self._not_before = 0.0
        self._started_at = ""

    @property
    def is_running(self) -> bool:
        return self._sandbox is not None

    @property
    def is_done(self) -> bool:
        return self.exit_code is not None

    def step(self, pod: Object, volumes: dict[str, Volume]) -> None:
        """Notice an exit, or try to start if it is time."""
        if self._sandbox:
            if self._sandbox.exit_code() is not None:
                self._ended(self._sandbox, deleted="deletionTimestamp" in pod["metadata"])
        elif not self.is_done and time.monotonic() >= self._not_before:
            self._try_to_start(pod, volumes)

    def terminate(self) -> None:
        if self._sandbox:
            self._sandbox.signal(signal.SIGTERM)

    def signal(self, number: int, *, oom: bool = False) -> None:
        if self._sandbox:
            self._sandbox.oom_killed = oom
            self._sandbox.signal(number)

    def kill(self) -> None:
        if self._sandbox:
            self._sandbox.kill()

    def kill_and_wait(self) -> None:
        if self._sandbox:
            self._sandbox.kill()
            self._sandbox.wait()
            self._log.close()

    def status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self._container["image"],
            "imageID": "sha256:fake",
            "ready": self.is_running,
            "started": self.is_running,
            "restartCount": self.restarts,
            "containerID": f"containerd://{self._folder.parent.name}-{self.name}-{self.restarts}",
            "state": self.state,
            "lastState": self.last_state,
        }

    def _try_to_start(self, pod: Object, volumes: dict[str, Volume]) -> None:
        if self._image_is_missing(pod):
            return
        with self._kubelet.store.lock:
            try:
                env = build_env(self._kubelet.store, pod, self._container)
            except MissingReferenceError as error:
                self._wait_for("CreateContainerConfigError", str(error))
                self._kubelet.warn(pod, "Failed", f"Error: {error}")
                return
        self._log = ContainerLog(self._kubelet.cluster.log_tick_ns)
        self._kubelet.logs.setdefault((pod["metadata"]["uid"], self.name), []).append(self._log)
        folder = self._folder / f"run-{self.restarts}"
        spec = self._process(pod, volumes, env)
        self._started_at = timestamp()
        self._sandbox = Sandbox(spec, folder, self._log, self._kubelet.wake)
        if self._sandbox.exit_code() is None:
            self.state = {"running": {"startedAt": self._started_at}}

    def _wait_for(self, reason: str, message: str) -> None:
        self.state = {"waiting": {"reason": reason, "message": message}}

    def _image_is_missing(self, pod: Object) -> bool:
        image = self._container["image"]
        if not _IMAGE.fullmatch(image):
            problem = f"couldn't parse image name {image!r}: invalid reference format"
            text = f'Failed to apply default image tag "{image}": {problem}'
            self._wait_for("InvalidImageName", text)
            self._kubelet.warn(pod, "InspectFailed", text)
            return True
        if "missing-image" not in image and ".invalid/" not in image:
            return False
        text = (
            f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": '
            "pull access denied, repository does not exist or may require authorization"
        )
        if self.state.get("waiting", {}).get("reason") == "ErrImagePull":
            back_off = f'Back-off pulling image "{image}"'
            self._wait_for("ImagePullBackOff", f"{back_off}: ErrImagePull: {text}")
            self._kubelet.record(pod, "BackOff", back_off)
            self._not_before = time.monotonic() + 3600
        else:
            self._wait_for("ErrImagePull", text)
            self._kubelet.warn(pod, "Failed", f'Failed to pull image "{image}": {text}')
            self._not_before = time.monotonic() + self._kubelet.cluster.backoff_s
        return True

    def _report_pull_secrets(self, pod: Object) -> None:
        namespace, references = pod["metadata"]["namespace"], pod["spec"].get("imagePullSecrets") or []
        names = [item["name"] for item in references]
        with self._kubelet.store.lock:
            missing = [name for name in names if not self._kubelet.store.get("secrets", namespace, name)]
        if missing:
            text = f"Unable to retrieve some image pull secrets ({', '.join(missing)}); attempting to pull the image"
            self._kubelet.warn(pod, "FailedToRetrieveImagePullSecret", f"{text} may not succeed.")

    def _process(self, pod: Object, volumes: dict[str, Volume], env: dict[str, str]) -> ProcessSpec:
        container, cluster = self._container, self._kubelet.cluster
        words = [*(container.get("command") or cluster.image_entrypoint)]
        words += container.get("args") or []
        user, groups = self._user(pod)
        hostname = pod["spec"].get("hostname") or pod["metadata"]["name"]
        home = "/" if user else "/root"
        context = container.get("securityContext") or {}
        return ProcessSpec(
            argv=[expand(word, env) for word in words] or ["/bin/false"],
            env={"HOME": home, **cluster.image_env, "HOSTNAME": hostname[:63], **env},
            hostname=hostname[:63],
            working_dir=container.get("workingDir") or "/",
            user=user,
            groups=groups,
            read_only_root=bool(context.get("readOnlyRootFilesystem")),
            mounts=self._mounts(pod, volumes),
        )

    def _user(self, pod: Object) -> tuple[str | None, str]:
        """The `uid:gid` to run as; the image's user is root unless that is forbidden."""
        if not self._kubelet.cluster.run_as_user:
            return None, ""
        context = {
            **(pod["spec"].get("securityContext") or {}),
            **(self._container.get("securityContext") or {}),
        }
        uid = context.get("runAsUser")
        if uid is None:
            uid = _IMAGE_USER if context.get("runAsNonRoot") else 0
        group = context.get("runAsGroup", uid if uid == _IMAGE_USER else 0)
        return (f"{uid}:{group}" if uid else None), str(context.get("fsGroup", ""))

    def _mounts(self, pod: Object, volumes: dict[str, Volume]) -> list[Mount]:
        message = self._folder / f"message-{self.restarts}"
        message.parent.mkdir(parents=True, exist_ok=True)
        message.touch()
        message.chmod(0o666)
        hosts = self._kubelet.cluster.hosts.file(pod["metadata"]["namespace"])
        cluster = self._kubelet.cluster
        own = [
            Mount("/etc/hosts", hosts),
            Mount(self._container["terminationMessagePath"], message),
            *container_mounts(self._container, volumes),
        ]
        shared = [Mount(str(path), path) for path in cluster.shared_paths]
        kept = [Mount(str(path), path, copied=True) for path in cluster.kept_paths if _is_hidden(path, own)]
        # outer ones first: what lies below the pod's own /tmp would else be covered by it
        return sorted([*kept, *shared, *own], key=lambda mount: Path(mount.target).parts)

    def _ended(self, sandbox: Sandbox, *, deleted: bool) -> None:
        code = sandbox.exit_code()
        assert code is not None
        self._log.close()
        self._sandbox = None
        self.last_state, before = self.state, self.last_state
        self.state = {"terminated": self._terminated(sandbox, code)}
        restart = self._restart == "Always" or (self._restart == "OnFailure" and code != 0)
        if restart and not deleted:
            self._back_off()
        else:
            self.exit_code, self.last_state = code, before

    def _terminated(self, sandbox: Sandbox, code: int) -> dict[str, Any]:
        reason = "OOMKilled" if sandbox.oom_killed else "Error" if code else "Completed"
        message = self._message(code)
        if sandbox.start_error:
            reason, message = "StartError", sandbox.start_error
        return {
            "exitCode": code,
            "reason": reason,
            "startedAt": self._started_at,
            "finishedAt": timestamp(),
            "containerID": self.status()["containerID"],
            **({"message": message} if message else {}),
        }

    def _message(self, code: int) -> str:
        file = self._folder / f"message-{self.restarts}"
        text = file.read_bytes()[:_MESSAGE_LIMIT].decode(errors="replace")
        falls_back = self._container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        if text or not falls_back or code == 0:
            return text
        tail = b"".join(self._log.read(LogQuery(tail=80)))
        return tail[-2048:].decode(errors="replace")

    def _back_off(self) -> None:
        self.last_state = self.state
        delay = self._kubelet.cluster.backoff_s * min(2**self.restarts, 60)
        self.restarts += 1
        self._not_before = time.monotonic() + (0 if self.restarts == 1 else delay)
        if self.restarts > 1:
            text = f"back-off {delay:g}s restarting failed container={self.name}"
            self._wait_for("CrashLoopBackOff", text)


def _is_hidden(path: Path, mounts: list[Mount]) -> bool:
    """Whether a container would not see a path of the machine: one of its mounts covers it, or it is on another file
    system than the root, which is all that the container's root shows."""
    covered = any(path.resolve().is_relative_to(mount.target) for mount in mounts)
    return covered or path.stat().st_dev != Path("/").stat().st_dev
