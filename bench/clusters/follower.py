"""What `launch logs -f` of a large run loses, how fast it is, and how late at rest.

The real command, over HTTP, against log_server.py: 64 nodes of 20,000 lines, of which 20 are replaced half-way, and
200 broken connections. Prints a table, and as its last line one JSON object; ends with 1 when a target is missed.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from log_server import make_log

from launcher.backends.hosts.log_files import LogFiles
from launcher.backends.kubernetes.logs.pods import read_logs
from launcher.backends.kubernetes.logs.source import Pod
from launcher.logs.line import LogQuery
from launcher.runs.record import Run
from launcher.runs.store import RunStore, now
from launcher.terminal import ui

NODES, LINES, REPLACED, BREAKS, SEED = 64, 20_000, 20, 200, 20261124
DELAYS = 40
KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: bench
clusters: [{{name: bench, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: bench, context: {{cluster: bench, user: bench, namespace: default}}}}]
users: [{{name: bench, user: {{}}}}]
"""


def main() -> int:
    """Measure, print."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures |= storm(folder / "storm")
        figures["merger_lines_per_s"] = merger(folder / "merger")
        figures["delays_ms"] = {"kubernetes": delay_of_pods(folder / "pods"), "files": delay_of_files(folder / "files")}
    worst = {place: max(found) for place, found in figures["delays_ms"].items()}
    figures["follow_delay_ms"] = round(max(worst.values()))
    report(figures)
    good = (not figures["lines_lost"] and not figures["lines_doubled"] and figures["broken"] == BREAKS
            and figures["lines_per_s"] >= 100_000 and figures["follow_delay_ms"] < 200)
    return 0 if good else 1


def report(figures: dict[str, Any]) -> None:
    """A table for people, and one JSON line."""
    delays = figures.pop("delays_ms")
    for title, value in (
        (f"lines, of {NODES} nodes", f"{NODES * LINES:,}"),
        ("broken connections, replaced pods", f"{figures['broken']}, {REPLACED}"),
        ("lost, doubled, gaps told", f"{figures['lines_lost']}, {figures['lines_doubled']}, {figures['gaps']}"),
        ("lines/s, the command, start to end", f"{figures['lines_per_s']:,}    (target: 100,000)"),
        ("lines/s, the merger without HTTP", f"{figures['merger_lines_per_s']:,}"),
        ("memory: at a quarter, most", f"{figures['rss_mib']}, {figures['rss_most_mib']} MiB"),
        *((f"delay at rest, {place}: median, most",
           f"{statistics.median(found):.0f}, {max(found):.0f} ms    (target: 200)") for place, found in delays.items()),
    ):
        print(f"{title:40} {value}")
    print(json.dumps(figures))


def storm(folder: Path) -> dict[str, Any]:
    """The whole command through broken connections, to a file."""
    out = folder / "out.log"
    sizes = ["--nodes", NODES, "--lines", LINES, "--replaced", REPLACED, "--breaks", BREAKS, "--seed", SEED]
    with server(folder, *sizes) as process, out.open("wb") as file:
        began = time.perf_counter()
        follower = start_follower(folder, NODES, stdout=file)
        memory = watch_memory(follower, out)
        took_s = time.perf_counter() - began
        process.terminate()
        broken = int(process.stdout.read())
    if follower.returncode:
        raise SystemExit(f"launch logs ended with {follower.returncode}")
    return {**count(out), **memory, "lines_per_s": int(NODES * LINES / took_s), "broken": broken}


def count(out: Path) -> dict[str, int]:
    """Lines that are missing, and lines that came again or out of order."""
    seen: list[set[int]] = [set() for _ in range(NODES)]
    highest = [-1] * NODES
    doubled = gaps = 0
    with out.open("rb") as file:
        for line in file:
            match = re.match(rb"\[node +(\d+)\] (\d+) ", line)
            if not match:
                gaps += 1
                continue
            node, number = int(match[1]), int(match[2])
            doubled += number in seen[node] or number < highest[node]
            seen[node].add(number)
            highest[node] = max(highest[node], number)
    return {"lines_lost": sum(LINES - len(numbers) for numbers in seen), "lines_doubled": doubled, "gaps": gaps}


def watch_memory(follower: "subprocess.Popen[bytes]", out: Path) -> dict[str, int]:
    """Resident MiB once a quarter of the output is there, and at most, until it ends."""
    quarter, most = 0, 0
    expected = NODES * len(make_log(0, 0, LINES)[0])
    while follower.poll() is None:
        try:
            status = Path(f"/proc/{follower.pid}/status").read_text()
        except OSError:
            break
        found = re.search(r"VmRSS:\s+(\d+)", status)
        most = max(most, int(found[1]) // 1024 if found else 0)
        if not quarter and out.stat().st_size > expected / 4:
            quarter = most
        time.sleep(0.05)
    follower.wait()
    return {"rss_mib": quarter, "rss_most_mib": most}


def merger(folder: Path) -> int:
    """Lines a second from memory through the merger and the archive to a file, in this process."""
    logs = [make_log(node, 0, LINES)[0] for node in range(NODES)]
    out = folder / "out.log"
    folder.mkdir()
    began = time.perf_counter()
    with out.open("w") as file:
        batches = read_logs(Memory(logs), folder / "logs", list(range(NODES)), LogQuery(follow=True),
                            stop=threading.Event())
        ui.print_logs(batches, nodes=NODES, stream=file)
    took_s = time.perf_counter() - began
    if count(out)["lines_lost"]:
        raise SystemExit("the merger lost lines")
    return int(NODES * LINES / took_s)


class Memory:
    """A source of logs that are there at once."""

    def __init__(self, logs: list[bytes]) -> None:
        self.logs = logs

    def pods(self) -> tuple[list[Pod], bool]:
        return [Pod(node, f"bench-{node}", "2026-11-24T11:00:00Z", started=True, ended=True)
                for node in range(len(self.logs))], True

    def has_ended(self, pod: Pod) -> bool:
        return True

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        data = self.logs[pod.node]
        start = 0 if since is None else data.index(since[:19].encode())
        return (data[at:at + 2**15] for at in range(start, len(data), 2**15))

    def copied(self, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        return None

    def close(self) -> None:
        pass


def delay_of_pods(folder: Path) -> list[float]:
    """Milliseconds from when the server sends a line to when the command has printed it."""
    with server(folder, "--nodes", 1, "--lines", 1, "--replaced", 0, "--breaks", 0, "--trickle-s", 0.11):
        follower = start_follower(folder, 1, stdout=subprocess.PIPE)
        delays = []
        for line in follower.stdout or ():
            delays.append((time.time() - float(line.split()[-1])) * 1000)
            if len(delays) > DELAYS:
                break
        follower.kill()
        follower.wait()
    return delays[1:]  # the first waited for the command to start


def delay_of_files(folder: Path) -> list[float]:
    """The same for a file of a node, written by a thread of this process."""
    folder.mkdir()
    draw = random.Random(SEED)
    done = threading.Event()

    def write() -> None:
        with (folder / "node-0.log").open("a") as file:
            for _ in range(DELAYS):
                time.sleep(draw.uniform(0.05, 0.15))
                print("sent", time.time(), file=file, flush=True)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    files = LogFiles(folder, [0], began=now(), ended=done.is_set)
    return [(time.time() - float(line.raw.split()[-1])) * 1000
            for batch in files.read(LogQuery(follow=True)) for line in batch]


@contextmanager
def server(folder: Path, *options: Any) -> Iterator["subprocess.Popen[str]"]:
    """log_server.py, and a run folder and a kubeconfig that lead to it."""
    argv = [sys.executable, str(Path(__file__).with_name("log_server.py")), *map(str, options)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            folder.mkdir()
            (folder / "kubeconfig").write_text(KUBECONFIG.format(port=port))
            yield process
        finally:
            process.kill()


def start_follower(folder: Path, nodes: int, **more: Any) -> "subprocess.Popen[bytes]":
    """`launch logs -f` of the server's run."""
    store = RunStore(folder / "home")
    store.claim("bench")
    place = {"context": "bench", "namespace": "default", "kubernetes_kind": "Job", "repair": "ask"}
    store.save(Run(run_id="bench", name="bench", kind="run", backend="kubernetes", handle="k8s://bench/default/bench",
                   cluster=None, nodes=nodes, processes_per_node=1, grace_s=30, restarts=0, created=now(),
                   job_dir=str(folder), outputs=None, exit_codes={}, place=place))
    environ = {**os.environ, "LAUNCH_HOME": str(folder / "home"), "KUBECONFIG": str(folder / "kubeconfig")}
    return subprocess.Popen([sys.executable, "-m", "launcher.cli", "logs", "-f", "bench"], env=environ, **more)


if __name__ == "__main__":
    sys.exit(main())
