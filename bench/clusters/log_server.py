"""A small API server for the follower's benchmark: pods with long logs, and connections that break.

tests/fakes/kubernetes runs real processes and cannot serve a million lines in time; this one knows only the requests
that a follower makes, and sends logs from memory. Started as a process of its own; prints its port, and on SIGTERM how
many connections it has broken.
"""

import argparse
import json
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BEGAN = datetime(2026, 11, 24, 11, tzinfo=UTC)
LINES_PER_S = 500  # by their stamps
LARGEST_CHUNK = 2**15  # what the real API server copies at once
WAYS_TO_BREAK = ("reset", "half a chunk", "clean end")
FILLER = ("loss 2.3456  lr 1.0e-03  tok/s 12345", "same line", "", "é 上海 😀 " * 8, "x" * 200)


@dataclass
class PodLog:
    """One pod: its log, where connections break (offsets), and whether it was read to its end."""

    name: str
    node: int
    data: bytes
    seconds: dict[str, int]  # where the lines of each second begin
    breaks: list[int] = field(default_factory=list)
    ended: bool = False
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


def make_log(node: int, first: int, last: int) -> tuple[bytes, dict[str, int]]:
    """Lines `first` to `last` of a node, with stamps, and the offset of each second."""
    seconds: dict[str, int] = {}
    parts, size = [], 0
    for number in range(first, last):
        second = (BEGAN + timedelta(seconds=number // LINES_PER_S)).strftime("%Y-%m-%dT%H:%M:%S")
        nanos = number % LINES_PER_S * (10**9 // LINES_PER_S) + node
        seconds.setdefault(second, size)
        line = f"{second}.{nanos:09}Z {number} {FILLER[number % len(FILLER)]}\n".encode()
        parts.append(line)
        size += len(line)
    return b"".join(parts), seconds


def make_pods(nodes: int, lines: int, replaced: int, breaks: int, draw: random.Random) -> list[PodLog]:
    """Every node's pods in order; `replaced` nodes have two."""
    pods = []
    twice = set(draw.sample(range(nodes), replaced))
    for node in range(nodes):
        cut = draw.randrange(lines // 4, lines) if node in twice else lines
        for attempt, (first, last) in enumerate([(0, cut), (cut, lines)]):
            if first < last:
                pods.append(PodLog(f"bench-{node}-{attempt}", node, *make_log(node, first, last), failed=last < lines))
    for _ in range(breaks):
        pod = draw.choice(pods)
        pod.breaks.append(draw.randrange(len(pod.data)))
    for pod in pods:
        pod.breaks.sort()
    return pods


class LogServer(ThreadingHTTPServer):
    """The pods, and what happened so far."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, pods: list[PodLog], draw: random.Random, trickle_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods = pods
        self.draw = draw
        self.trickle_s = trickle_s
        self.broken = 0

    def listed(self) -> list[PodLog]:
        """A replacement is there once the pod before it has ended."""
        ended = {pod.name for pod in self.pods if pod.ended}
        return [pod for pod in self.pods if pod.name.endswith("-0") or f"bench-{pod.node}-0" in ended]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up whenever they like."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LogServer

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if match := re.search(r"/pods/([^/]+)/log$", url.path):
            pod = next(pod for pod in self.server.pods if pod.name == match[1])
            self._log(pod, query)
        elif url.path.endswith("/pods"):
            self._json({"items": [pod_object(pod) for pod in self.server.listed()]})
        elif url.path.endswith("/jobs/bench"):
            over = all(pod.ended for pod in self.server.pods)
            done = [{"type": "Complete", "status": "True"}] if over else []
            self._json({"kind": "Job", "metadata": {"name": "bench"}, "spec": {"completions": 1},
                        "status": {"conditions": done}})
        else:
            self._json({"items": []})

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _log(self, pod: PodLog, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.server.trickle_s:
            self._trickle()
            return
        offset = pod.seconds.get(query.get("sinceTime", "")[:19], 0)
        for chunk in self._chunks(pod, offset):
            if chunk is None:
                self._break(pod)
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")
        pod.ended = pod.ended or query.get("follow") == "true"

    def _chunks(self, pod: PodLog, offset: int) -> Iterator[bytes | None]:
        """Pieces of any size; None where the connection breaks."""
        while offset < len(pod.data):
            end = min(offset + self.server.draw.randint(1, LARGEST_CHUNK), len(pod.data))
            with pod.lock:
                due = pod.breaks[0] if pod.breaks and pod.breaks[0] < end else None
                if due is not None:
                    pod.breaks.pop(0)
            if due is not None:
                if due > offset:
                    yield pod.data[offset:due]
                yield None
            yield pod.data[offset:end]
            offset = end

    def _break(self, pod: PodLog) -> None:
        self.server.broken += 1
        way = self.server.draw.choice(WAYS_TO_BREAK)
        if way == "clean end":
            self.wfile.write(b"0\r\n\r\n")
            return
        if way == "half a chunk":
            self.wfile.write(b"ffff\r\n2026-11-24T")
        self.close_connection = True

    def _trickle(self) -> None:
        """One line now and then, which says when it was sent."""
        while True:
            now = time.time()
            line = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z sent {now}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            time.sleep(self.server.trickle_s)


def pod_object(pod: PodLog) -> dict[str, Any]:
    """As much of a Pod as a follower looks at."""
    code = 75 if pod.failed else 0
    state = {"terminated": {"exitCode": code}} if pod.ended else {"running": {}}
    phase = ("Failed" if pod.failed else "Succeeded") if pod.ended else "Running"
    born = BEGAN + timedelta(seconds=int(pod.name.rsplit("-", 1)[1]))
    return {
        "metadata": {"name": pod.name, "creationTimestamp": born.strftime("%Y-%m-%dT%H:%M:%SZ"),
                     "labels": {"batch.kubernetes.io/job-completion-index": str(pod.node), "launch/run-id": "bench"}},
        "spec": {"containers": [{"name": "trainer"}], "nodeName": f"machine-{pod.node}"},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]},
    }


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 64), ("lines", 20_000), ("replaced", 20), ("breaks", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--trickle-s", type=float, default=0.0)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    draw = random.Random(options.seed)
    pods = make_pods(options.nodes, options.lines, options.replaced, options.breaks, draw)
    server = LogServer(pods, draw, options.trickle_s)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(server.broken, flush=True)))
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
