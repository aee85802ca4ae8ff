"""HTTP in front of `Api`: routing, bodies, watches and chunked log streams."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from .api import Query, matches
from .errors import ApiError
from .faults import DROP_IDLE_S
from .podlogs import open_log
from .resources import Resource, discovery, find_resource

if TYPE_CHECKING:
    from .cluster import FakeCluster

Target = tuple[Resource, "str | None", str, str]  # resource, namespace, name, subresource


class ApiServer(ThreadingHTTPServer):
    """The listening socket; its threads end with their connections."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cluster = cluster
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.cluster.faults.is_away():
            reset(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up whenever they like; that is not worth a trace."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ApiServer

    def log_message(self, *_: Any) -> None:
        """Tests read `cluster.requests` instead."""

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        self._warnings: list[str] = []
        body = self._read_body()
        cluster = self.server.cluster
        cluster.requests.append((self.command, url.path, query, body))
        if cluster.faults.is_away():
            self.close_connection = True
            reset(self.connection)
            return
        try:
            if cluster.bug:
                raise ApiError(500, f"the fake cluster has stopped: {cluster.bug!r}")
            cluster.faults.check(url.path)
            if self.command == "POST":
                cluster.faults.check_admission(url.path)
            self._authenticate(cluster.token)
            self._route(url.path, query, body)
        except ApiError as error:
            self._send(error.code, error.status, error.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # a bug in the fake must reach the client, not hang it
            self._send(500, ApiError(500, f"fake API server: {error!r}").status)
            raise

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - names the base class looks for

    def _read_body(self) -> Any:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not data:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return yaml.safe_load(data)

    def _authenticate(self, token: str | None) -> None:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if token and (scheme.lower(), given) != ("bearer", token):
            raise ApiError(401, "Unauthorized")

    def _route(self, path: str, query: Query, body: Any) -> None:
        absent = self.server.cluster.absent_groups
        document = discovery(path.rstrip("/"), absent) if self.command == "GET" else None
        if document:
            self._send(200, document)
            return
        if path in ("/healthz", "/livez", "/readyz"):
            self._send(200, "ok")
            return
        resource, namespace, name, sub = parse_path(path)
        if resource.group in absent:
            raise ApiError(404, "the server could not find the requested resource")
        if sub:
            self._subresource((resource, namespace, name, sub), query, body)
        else:
            getattr(self, f"_{self.command.lower()}")(resource, namespace, name, query, body)

    def _get(self, resource: Resource, namespace: str | None, name: str, query: Query, _body: Any) -> None:
        api = self.server.cluster.api
        if query.get("watch", "").lower() in ("1", "true"):
            if name:
                query["fieldSelector"] = f"metadata.name={name}"
            self._stream(self._droppable(self._watch(resource, namespace, query)), "application/json")
        elif name:
            self._send(200, api.get(resource, namespace or "", name))
        elif self._is_expired(query):
            raise ApiError(410, "The resourceVersion for the provided list is too old.")
        else:
            self._send(200, api.list_objects(resource, namespace, query))

    def _post(self, resource: Resource, namespace: str | None, _name: str, query: Query, body: Any) -> None:
        api = self.server.cluster.api
        obj = api.create(resource, namespace or "", body or {}, query, self._warnings.append)
        self._send(201, obj)

    def _put(self, resource: Resource, namespace: str | None, name: str, query: Query, body: Any) -> None:
        api = self.server.cluster.api
        self._send(200, api.replace(resource, namespace or "", name, body, query))

    def _patch(self, resource: Resource, namespace: str | None, name: str, query: Query, body: Any) -> None:
        api = self.server.cluster.api
        kind = self.headers.get("Content-Type", "").partition(";")[0]
        if kind == "application/apply-patch+yaml":
            warn = self._warnings.append
            obj, is_new = api.apply(resource, namespace or "", name, body, query, warn)
            self._send(201 if is_new else 200, obj)
        elif kind in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            self._send(200, api.patch(resource, namespace or "", name, body, query))
        else:
            raise ApiError(415, f"patch type {kind} is not supported")

    def _delete(self, resource: Resource, namespace: str | None, name: str, query: Query, body: Any) -> None:
        api = self.server.cluster.api
        options = {**query, **(body or {})}
        if name:
            self._send(200, api.delete(resource, namespace or "", name, options))
        else:
            api.delete_collection(resource, namespace or "", options)
            self._send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _subresource(self, target: Target, query: Query, body: Any) -> None:
        resource, namespace, name, sub = target
        api = self.server.cluster.api
        if sub == "log" and self.command == "GET":
            lines = open_log(self.server.cluster, namespace or "", name, query)
            self._stream(self._droppable(lines), "text/plain")
        elif sub == "status" and self.command == "GET":
            self._send(200, api.get(resource, namespace or "", name))
        elif sub == "status":
            self._send(200, api.set_status(resource, namespace or "", name, body))
        elif sub == "eviction" and self.command == "POST":
            api.evict(resource, namespace or "", name)
            self._send(201, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        else:
            raise ApiError(405, f"{self.command} is not supported on {sub}")

    def _is_expired(self, query: Query) -> bool:
        """Whether the request goes on from a version that nobody remembers; 0 is any version."""
        version = query.get("resourceVersion") or "0"
        return version != "0" and int(version) < self.server.cluster.store.oldest

    def _watch(self, resource: Resource, namespace: str | None, query: Query) -> Iterator[bytes]:
        store = self.server.cluster.store
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
        seen = int(query.get("resourceVersion") or 0)
        if self._is_expired(query):
            text = f"too old resource version: {seen} ({store.oldest})"
            yield json.dumps({"type": "ERROR", "object": ApiError(410, text).status}).encode() + b"\n"
            return
        while time.monotonic() < deadline and not self.server.stopping.is_set():
            with store.changed:
                if store.version <= seen:
                    store.changed.wait(0.2)
                news = [copy.copy(item) for item in store.history if item[0] > seen]
                seen = max(seen, store.version)
            for _, kind, plural, obj in news:
                in_namespace = namespace in (None, obj["metadata"].get("namespace", ""))
                if plural == resource.plural and in_namespace and matches(obj, query):
                    yield json.dumps({"type": kind, "object": obj}).encode() + b"\n"
            yield b""

    def _droppable(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Pass lines on until a test drops the stream: then half a line, and a cut."""
        faults = self.server.cluster.faults
        known, deadline = faults.drops, 0.0
        for line in lines:
            if self.server.stopping.is_set():
                return
            if faults.drops == known:
                yield line
                continue
            if faults.drop_cleanly:
                return
            deadline = deadline or time.monotonic() + DROP_IDLE_S
            if line or time.monotonic() > deadline:
                yield line[: len(line) // 2]
                raise ConnectionResetError

    def _stream(self, pieces: Iterator[bytes], content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sizes = self._chunk_sizes()
        try:
            for piece in pieces:
                rest = piece
                while rest:
                    size = next(sizes) or len(rest)
                    chunk, rest = rest[:size], rest[size:]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _chunk_sizes(self) -> Iterator[int]:
        """0 stands for all there is; else every size in turn, so that characters split."""
        count = 0
        while True:
            count = count % 7 + 1
            yield count if self.server.cluster.split_utf8 else 0

    def _send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        is_text = isinstance(body, str)
        data = body.encode() if is_text else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for warning in self._warnings:
            self.send_header("Warning", f"299 - {json.dumps(warning)}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN: what a client of a dead server sees."""
    linger = struct.pack("ii", 1, 0)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()


def parse_path(path: str) -> Target:
    """Resource, namespace (None: all, or not namespaced), name and subresource."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"]:
        group, rest = (parts[1:2] or [""])[0], parts[3:]
    else:
        raise ApiError(404, "the server could not find the requested resource")
    namespace = None
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = find_resource(group, rest[0]) if rest else None
    if not resource:
        raise ApiError(404, "the server could not find the requested resource")
    name, sub = [*rest[1:3], "", ""][:2]
    return resource, namespace, name, sub
