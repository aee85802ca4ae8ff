"""A Hugging Face hub on this machine: the few calls that a download makes, with state that a test changes."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class FakeHub:
    """`repositories`: name -> revision -> folder. With a `status` every answer is that HTTP status."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.status: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """From now on the port refuses connections."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one GET."""
        if self.status is not None:
            return self.status, {}, b""
        kind, *words = path.partition("?")[0].strip("/").split("/")
        owner, name, verb, revision, *rest = words[1:] if kind == "api" else [kind, *words]
        revisions = self.repositories.get(f"{owner}/{name}")
        if revisions is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        found = {key: folder for one, folder in revisions.items() for key in (one, _commit(folder))}.get(revision)
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if verb == "resolve":
            return _file(found, "/".join(rest))
        return 200, {"Content-Type": "application/json"}, json.dumps(_told(f"{owner}/{name}", found, verb)).encode()


def _commit(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()


def _file(folder: Path, name: str) -> tuple[int, dict[str, str], bytes]:
    commit = {"X-Repo-Commit": _commit(folder)}
    if not (folder / name).is_file():
        return 404, {**commit, "X-Error-Code": "EntryNotFound"}, b""
    body = (folder / name).read_bytes()
    return 200, {**commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


def _told(name: str, folder: Path, verb: str) -> Any:
    """`revision`: about one; `tree`: its files."""
    if verb == "revision":
        files = [{"rfilename": path.name} for path in folder.iterdir()]
        return {"id": name, "modelId": name, "sha": _commit(folder), "siblings": files, "tags": [], "private": False}
    return [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in folder.iterdir()]  # fmt: skip


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  (the server's name for it)

        def log_message(self, *args: object) -> None:
            """Not a word."""

    return Handler
