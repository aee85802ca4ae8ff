"""What a job runs on every node: wait for the peers, start the trainer's processes, pass signals on, end with the
worker's own exit code.

Reads the environment that the launcher's back ends set: LAUNCH_NODES, LAUNCH_PROCESSES_PER_NODE, NODE_RANK (or
JOB_COMPLETION_INDEX), MASTER_ADDR, MASTER_PORT, LAUNCH_GRACE_S, LAUNCH_CODE. Imports no torch: a node whose peers
never come must not pay for it.

torchrun ends with 1 whatever its workers return, and kills them 30 s after TERM unless told otherwise
(pytorch#119856); so workers leave their code in a file and the grace is passed on.
"""

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PEER_WAIT_S = 600
EXIT_FILE_VARIABLE = "LAUNCH_EXIT_FILES"
PREEMPTED, CONFIG = 75, 78
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Placement:
    """This node among its peers."""

    nodes: int
    processes: int
    rank: int
    master: str
    port: int
    grace_s: int

    @property
    def world(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.processes


def read_placement(environ: Mapping[str, str]) -> Placement:
    """The placement that the launcher put into the environment; alone on this machine by default."""
    rank = environ.get("NODE_RANK") or environ.get("JOB_COMPLETION_INDEX") or "0"
    return Placement(
        nodes=int(environ.get("LAUNCH_NODES", "1")),
        processes=int(environ.get("LAUNCH_PROCESSES_PER_NODE", "1")),
        rank=int(rank),
        master=environ.get("MASTER_ADDR", "127.0.0.1"),
        port=int(environ.get("MASTER_PORT", "29500")),
        grace_s=int(environ.get("LAUNCH_GRACE_S", "120")),
    )


def trainer_command(placement: Placement, config: str) -> list[str]:
    """One process runs the trainer itself; several are started by torchrun with static ranks (a lost peer then ends
    every node within seconds, and the scheduler starts all of them again)."""
    trainer = ["-m", "trainer.cli", "train", "--config", config]
    if placement.world == 1:
        return [sys.executable, *trainer]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={placement.nodes}",
        f"--nproc-per-node={placement.processes}",
        f"--node-rank={placement.rank}",
        f"--master-addr={placement.master}",
        f"--master-port={placement.port}",
        "--max-restarts=0",
        *trainer,
    ]


def wait_for_master(placement: Placement, timeout_s: float = PEER_WAIT_S) -> bool:
    """Until node 0's name resolves (node 0 too: it binds that name) and, on other nodes, its port answers.

    Resolves again each time: a replaced pod has a new address under the same name.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if placement.rank == 0:
                socket.getaddrinfo(placement.master, placement.port)
            else:
                socket.create_connection((placement.master, placement.port), timeout=2).close()
            return True
        except OSError:
            time.sleep(0.3)
    return False


def unpack_code(environ: Mapping[str, str]) -> None:
    """Unpack the code snapshot into the working directory, where the launcher sent it as an archive: LAUNCH_CODE.0,
    LAUNCH_CODE.1, ... are its parts, ten at most and a few MiB together."""
    archive = environ.get("LAUNCH_CODE")
    if archive:
        parts = sorted(Path(archive).parent.glob(f"{Path(archive).name}.?"))
        with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
            tar.extractall(".", filter="data")


def supervise(command: list[str], environ: Mapping[str, str], grace_s: int) -> int:
    """Run to the end and return the exit code; TERM, INT and USR1 are passed on as TERM, once."""
    told = early = False
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal told, early
        first, told = not told, True  # before sending: a second signal may interrupt this very handler
        if process is None:
            early = True
        elif first:
            process.send_signal(signal.SIGTERM)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    process = subprocess.Popen(command, env={**environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace_s)})
    if early:
        process.send_signal(signal.SIGTERM)
    code = process.wait()
    return code if code >= 0 else 128 - code


def final_code(code: int, worker_codes: list[int]) -> int:
    """The workers' own code instead of torchrun's 1: a configuration error, else a saved pre-emption, else the rest."""
    for wanted in (CONFIG, PREEMPTED):
        if wanted in worker_codes and code != 0:
            return wanted
    return next((worker for worker in worker_codes if worker not in (0, 1)), code) if code == 1 else code


def main(argv: list[str] | None = None) -> int:
    """Run this node's part of the job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="trainer.entrypoint", description="Run one node of a training job.")
    parser.add_argument("--config", required=True, help="the five sections, as YAML")
    config = os.path.abspath(parser.parse_args(argv).config)
    placement = read_placement(os.environ)
    for number in STOP_SIGNALS:  # PID 1 of a container ignores what it has no handler for
        signal.signal(number, lambda *_: sys.exit(PREEMPTED))
    unpack_code(os.environ)
    if placement.nodes > 1 and not wait_for_master(placement):
        master = f"{placement.master}:{placement.port}"
        sys.stderr.write(f"error: node {placement.rank}: node 0 ({master}) did not come up in {PEER_WAIT_S} s\n")
        return PREEMPTED
    with tempfile.TemporaryDirectory(prefix="launch-exit-") as folder:
        environ = {**os.environ, EXIT_FILE_VARIABLE: folder}
        code = supervise(trainer_command(placement, config), environ, placement.grace_s)
        codes = [int(path.read_text() or 1) for path in sorted(Path(folder).glob("rank-*"))]
    return final_code(code, codes)


if __name__ == "__main__":
    sys.exit(main())
