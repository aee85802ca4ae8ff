"""A TCP proxy for HTTP that loses a connection at a chosen request: the request itself, or only its answer."""

import contextlib
import re
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"(GET|POST|PUT|PATCH|DELETE) ")


class CuttingProxy:
    """Forwards to `target`; `seen` counts requests since the last `cut`."""

    def __init__(self, target: str) -> None:
        url = urlsplit(target)
        self._target = (url.hostname or "", url.port or 80)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.seen = 0
        self._cut_at, self._lost = 0, "request"

    def __enter__(self) -> "CuttingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._socket.close()

    def cut(self, number: int, lost: str) -> None:
        """Lose the `number`-th request from now on, or its answer."""
        self.seen, self._cut_at, self._lost = 0, number, lost

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Requests of one connection come one after another, so what begins like one is one."""
        server = socket.create_connection(self._target)
        losing = threading.Event()
        threading.Thread(target=self._answers, args=(server, client, losing), daemon=True).start()
        with client, server, contextlib.suppress(OSError):
            while data := client.recv(2**16):
                if _REQUEST.match(data):
                    self.seen += 1
                    if self.seen == self._cut_at:
                        if self._lost == "request":
                            return
                        losing.set()
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(2**16):
                if losing.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
