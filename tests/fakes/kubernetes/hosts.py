"""Names for pods: one hosts file per namespace, bound over /etc/hosts in each container."""

from __future__ import annotations

import os
from pathlib import Path

from .gc import is_terminal
from .store import Store

_STATIC = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"


class Hosts:
    """Keeps the files up to date; the caller holds the store's lock."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._written: dict[str, bytes] = {}

    def file(self, namespace: str) -> Path:
        """The file to mount; may be called without the lock."""
        path = self._folder / namespace
        with self._store.lock:
            if not path.exists():
                self._write(namespace)
        return path

    def sync(self) -> None:
        for namespace in list(self._written):
            self._write(namespace)

    def _write(self, namespace: str) -> None:
        """Change the file in place, because containers have it mounted."""
        content = (_STATIC + "".join(self._lines(namespace))).encode()
        if self._written.get(namespace) == content:
            return
        self._written[namespace] = content
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / namespace, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)

    def _lines(self, namespace: str) -> list[str]:
        """A pod's name under its subdomain exists only while such a Service does."""
        lines = set()
        for pod in self._store.select("pods", namespace):
            spec = pod["spec"]
            if is_terminal(pod) or not spec.get("nodeName"):
                continue
            host = spec.get("hostname") or pod["metadata"]["name"]
            names = [host]
            subdomain = spec.get("subdomain")
            if subdomain and self._store.get("services", namespace, subdomain):
                short = f"{host}.{subdomain}"
                full = f"{short}.{namespace}.svc"
                names += [short, f"{short}.{namespace}", full, f"{full}.cluster.local"]
            lines.add(f"127.0.0.1 {' '.join(names)}\n")
        return sorted(lines)
