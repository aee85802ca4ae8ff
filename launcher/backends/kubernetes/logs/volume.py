"""What the pods of a run have archived of their logs, read by a short-lived pod that sees the volume."""

import base64
import binascii
import secrets
import threading
import time
import zlib
from contextlib import suppress
from typing import Any

from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.logs.fill import UnfilledError
from launcher.backends.kubernetes.logs.reader_pod import archive_folder, reader_pod
from launcher.backends.kubernetes.logs.source import Pod
from launcher.backends.kubernetes.logs.stamped import STAMP_LENGTH
from launcher.backends.kubernetes.pod import CONTAINER
from launcher.backends.kubernetes.status import pod_ended, terminated

START_S = 60
LOOK_S = 0.2
DELETE_TRIES = 5
MAX_LOG = 2**27  # bytes, held in memory until both borders are found
Object = dict[str, Any]


class LogArchive:
    """The archive of one run. One reader at a time, which is deleted whatever happens."""

    def __init__(self, kube: Kube, namespace: str, stop: threading.Event) -> None:
        self._kube = kube
        self._namespace = namespace
        self._stop = stop
        self._lock = threading.Lock()
        self._refused: str | None = None

    def lines(self, owner: Object | None, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        """What a pod has archived between two times and some seconds around them; None of a run that archives nothing.
        `owner` is the run's Job or JobSet. Raises UnfilledError, or ApiError when asking again may help."""
        folder = archive_folder(owner) if owner else None
        if owner is None or folder is None:
            return None
        name = f"{owner['metadata']['name'][:45]}-log-{secrets.token_hex(4)}"
        body = reader_pod(owner, name, f"{folder}/node-{pod.node}.{pod.name}.log", after or "-", before or "-")
        with self._lock:
            if self._refused:
                raise UnfilledError(self._refused)
            try:
                return _unpacked(self._printed(body))
            except ApiError as error:
                if error.passing:
                    raise
                self._refused = error.message
                raise UnfilledError(error.message) from error

    def close(self) -> None:
        """Wait until no reader is left; `stop` is set."""
        if self._lock.acquire(timeout=START_S):
            self._lock.release()

    def _printed(self, body: Object) -> bytes:
        name = body["metadata"]["name"]
        try:
            self._kube.create(body)
            ended = self._ended(name)
            data = b"".join(self._kube.stream_log(self._namespace, name, CONTAINER, since=None, follow=False))
        finally:
            self._delete(name)
        if (terminated(ended) or {"exitCode": None})["exitCode"] != 0:
            raise UnfilledError(f"its reader failed: {_why(ended)}")
        return data

    def _ended(self, name: str) -> Object:
        """The reader after its end; it has a deadline of its own."""
        begun = time.monotonic()
        while not self._stop.wait(LOOK_S):
            pod = self._kube.get("Pod", self._namespace, name)
            if pod is None:
                raise UnfilledError("its reader was deleted")
            if pod_ended(pod):
                return pod
            if pod["status"].get("phase", "Pending") == "Pending" and time.monotonic() - begun > START_S:
                self._refused = f"its reader was not started within {START_S} s: {_why(pod)}"
                raise UnfilledError(self._refused)
        raise UnfilledError("interrupted")

    def _delete(self, name: str) -> None:
        """In the end its deadline and its owner do it."""
        for _ in range(DELETE_TRIES):
            with suppress(ApiError):
                self._kube.delete("Pod", self._namespace, name, propagation="Background", at_once=True)
                return
            time.sleep(LOOK_S)


def _unpacked(log: bytes) -> list[bytes]:
    packer = zlib.decompressobj()
    try:
        packed = base64.b64decode(b"".join(line[STAMP_LENGTH + 1:] for line in log.split(b"\n")), validate=True)
        data = packer.decompress(packed, MAX_LOG)
    except (binascii.Error, zlib.error) as error:
        raise UnfilledError(f"what its reader printed is damaged: {error}") from error
    if not packer.eof:
        raise UnfilledError("what its reader printed is cut, or too long")
    return data.split(b"\n")[:-1]


def _why(pod: Object) -> str:
    """What the pod's status says of its trouble."""
    if end := terminated(pod):
        return str(end.get("message") or f"exit code {end['exitCode']}").strip()
    told = [item.get("message", "") for item in pod["status"].get("conditions", []) if item.get("status") == "False"]
    return next(filter(None, [*told, pod["status"].get("reason")]), "its node does not say why")
