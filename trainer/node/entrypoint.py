"""What a job runs on every node: wait for the peers, start the trainer's processes, pass signals on, end with the
worker's own exit code.

Reads the environment that the launcher's back ends set: LAUNCH_NODES, LAUNCH_PROCESSES_PER_NODE, NODE_RANK (or
JOB_COMPLETION_INDEX), MASTER_ADDR, MASTER_PORT, LAUNCH_GRACE_S, LAUNCH_LOG_ARCHIVE and LAUNCH_POD_NAME. Imports no
torch: a node whose peers never come must not pay for it.

torchrun ends with 1 whatever its workers return, and kills them 30 s after TERM unless it is given another time
(pytorch#119856); so trainer.node.agent runs it, workers leave their code and words in a file, and the grace is passed
on.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.node.archive import copied_output
from trainer.node.exit_files import VARIABLE, Report, read_reports
from trainer.node.finish import is_finished
from trainer.node.stop import PREEMPTED, STOP_SIGNALS

PEER_WAIT_S = 600
# Threads that wait for each other leave the cores to others: beside two busy processes a run on two cores took 41 s
# instead of 128 s, and alone 3 % longer.
_SHARED = {"OMP_WAIT_POLICY": "passive", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
FAILED, KILLED, TERMINATED = 1, 137, 128 + signal.SIGTERM
TERMINATION_LOG = Path("/dev/termination-log")  # what Kubernetes shows of an ended container; absent elsewhere
TERMINATION_BYTES = 4000


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


def trainer_command(placement: Placement, config: str, scratch: str) -> list[str]:
    """One process runs the trainer itself; several are started by torchrun with static ranks (a lost peer then ends
    every node within seconds, and the scheduler starts all of them again). torchrun leaves empty folders in `scratch`.
    """
    trainer = ["-m", "trainer.cli", "train", "--config", config]
    if placement.world == 1:
        return [sys.executable, *trainer]
    return [
        sys.executable,
        "-m",
        "trainer.node.agent",
        *(str(placement.nodes), str(placement.rank), placement.master, str(placement.port)),
        f"--nnodes={placement.nodes}",
        f"--nproc-per-node={placement.processes}",
        f"--node-rank={placement.rank}",
        f"--master-addr={placement.master}",
        f"--master-port={placement.port}",
        "--max-restarts=0",
        f"--log-dir={scratch}",
        *trainer,
    ]


def wait_for_master(
    placement: Placement, timeout_s: float, finished: Callable[[], bool] = lambda: False
) -> bool:
    """Until node 0's name resolves (node 0 too: it binds that name) and, on other nodes, its port answers. False after
    the time-out, and when the run has `finished` meanwhile.

    Resolves again each time: a replaced pod has a new address under the same name.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not finished():
        try:
            if placement.rank == 0:
                socket.getaddrinfo(placement.master, placement.port)
            else:
                socket.create_connection((placement.master, placement.port), timeout=2).close()
            return True
        except OSError:
            time.sleep(0.3)
    return False


def supervise(
    command: list[str], environ: Mapping[str, str], grace_s: int, output: int | None = None
) -> tuple[int, bool]:
    """Run to the end; returns the exit code, and whether a stop was requested meanwhile: TERM, INT and USR1 are passed
    on as TERM, once. `output` is a descriptor in place of our own output."""
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
    process = subprocess.Popen(command, env={**environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace_s)}, stdout=output,
                               stderr=output)
    if early:
        process.send_signal(signal.SIGTERM)
    code = process.wait()
    return code if code >= 0 else 128 - code, told


def final_code(code: int, left: list[Report], *, stop_requested: bool) -> int:
    """The first failed worker's own code; PREEMPTED only for a node that stopped on request and lost nothing.

    That is what the command ended with, with two exceptions. Ended by TERM, torchrun forgets what its workers did. And
    a PREEMPTED of a process that says nothing of it in its report may come from anybody's sys.exit(75). A worker whose
    report is empty was killed before it had saved; one without report had not begun, and had nothing to save.
    """
    if code not in (PREEMPTED, TERMINATED):
        return code
    silent = KILLED if code == TERMINATED else FAILED
    codes = [silent if report.code is None else report.code for report in left]
    if failed := next((one for one in codes if one not in (0, PREEMPTED)), None):
        return failed
    if stop_requested or PREEMPTED in codes:
        return PREEMPTED
    return FAILED if code == PREEMPTED else code


def essence(code: int, left: list[Report]) -> str:
    """What a person wants to know of a failure: the words of the first worker that ended so, in a few lines."""
    host = socket.gethostname()
    report = next((one for one in left if one.code == code), None) or next((one for one in left if one.code), None)
    if report is None:
        return f"host {host}: exit code {code}; the log says more\n"
    text = report.text.encode()[200 - TERMINATION_BYTES :].decode(errors="ignore")
    return f"rank {report.rank} on host {host}: exit code {report.code}\n{text}\n"


def leave_message(text: str) -> None:
    """Into the container's termination message, where there is one."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run this node's part of the job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="trainer.node.entrypoint", description="Run one node of a training job.")
    parser.add_argument("--config", required=True, help="the five sections, as YAML")
    config = os.path.abspath(parser.parse_args(argv).config)
    placement = read_placement(os.environ)
    for number in STOP_SIGNALS:  # PID 1 of a container ignores what it has no handler for
        signal.signal(number, lambda *_: sys.exit(PREEMPTED))
    finished = partial(is_finished, Path(config), os.environ)
    came = placement.nodes == 1 or wait_for_master(placement, PEER_WAIT_S, finished)
    if finished():
        sys.stderr.write("trainer: the results of this run are written already; nothing is left to do\n")
        return 0
    if not came:
        master = f"{placement.master}:{placement.port}"
        sys.stderr.write(f"error: node {placement.rank}: node 0 ({master}) did not come up in {PEER_WAIT_S} s\n")
        return FAILED
    with tempfile.TemporaryDirectory(prefix="launch-exit-") as folder:
        environ = {**_SHARED, **os.environ, VARIABLE: folder}
        with copied_output(os.environ, placement.rank) as output:
            ended, stop_requested = supervise(
                trainer_command(placement, config, folder), environ, placement.grace_s, output
            )
        left = read_reports(Path(folder))
    code = final_code(ended, left, stop_requested=stop_requested)
    if ended == PREEMPTED != code:
        why = "no stop was requested, or not every process has saved"
        sys.stderr.write(f"error: exit code {PREEMPTED}, but {why}: it counts as a failure with {code}\n")
    if code:
        leave_message(essence(code, left))
    return code


if __name__ == "__main__":
    sys.exit(main())
