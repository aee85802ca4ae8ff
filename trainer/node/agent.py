"""torchrun for this node, run in this process: first every node must come, and at the end the exit code is the first
failed worker's own, where torchrun's is always 1.

The rendezvous store is opened here, on node 0, and torchrun shares it. The verdict that the ranks reach in it
(trainer.node.peers) also ends workers of this node that cannot read it, since they were stopped or hang.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainer.node.peers import SUSPECT_S, VERDICT
from trainer.node.stop import PREEMPTED

COME_S = 600  # as long as a cluster may take to start the last node
SAY_S = 10
FAILED = 1
ALL_HERE = "launch/all-here"


def main(argv: list[str] | None = None) -> int:
    """`NODES NODE_RANK ADDRESS PORT TORCHRUN_ARGUMENTS...`; returns the exit code."""
    nodes, rank, address, port, *torchrun = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: os._exit(PREEMPTED))  # torchrun takes it over when it starts workers
    store = join_store(address, int(port), int(rank))
    if store is None:
        absent = [0]
    else:
        absent = wait_for_nodes(store, int(nodes), COME_S) if rank == "0" else wait_for_word(store)
    if store is None or absent:
        names = ", ".join(map(str, absent))
        sys.stderr.write(f"error: node {names} of {nodes} never came ({COME_S} s)\n")
        return FAILED
    store.set(ALL_HERE, "")
    ended = threading.Event()
    threading.Thread(target=end_the_condemned, args=(store, ended), daemon=True).start()
    code = run_workers(torchrun)
    return 1 if ended.is_set() else code


def join_store(address: str, port: int, rank: int, timeout_s: float = COME_S) -> Any:
    """The store of this start of the job, with this node noted in it; None when there is none in time.

    A node that was started again alone may still find node 0 of the last start, whose ranks are about to end. Its
    number is taken there: it waits for the next node 0, since joining would only fail and spend another restart.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        store = open_store(address, port, is_master=rank == 0)
        with contextlib.suppress(RuntimeError, OSError):  # node 0 ends at this moment
            if store.add(f"launch/came/{rank}", 1) == 1:
                store.set(f"launch/node/{rank}", socket.gethostname())
                return store
        del store
        time.sleep(0.5)
    return None


def open_store(address: str, port: int, *, is_master: bool) -> Any:
    """The rendezvous store; on node 0 torchrun, in the same process, uses the same server."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, and documented

    patience = timedelta(seconds=COME_S)
    return TCPStore(
        address, port, is_master=is_master, wait_for_workers=False, multi_tenant=True, timeout=patience
    )


def wait_for_nodes(store: Any, nodes: int, timeout_s: float) -> list[int]:
    """Until every node has come; else the numbers of those that have not. Says now and then who is waited for."""
    start = said = time.monotonic()
    while absent := [node for node in range(nodes) if not store.check([f"launch/node/{node}"])]:
        now = time.monotonic()
        if now - start > timeout_s:
            break
        if now - said > SAY_S:
            said = now
            names = ", ".join(map(str, absent))
            sys.stderr.write(f"trainer: waiting for node {names} of {nodes} ({now - start:.0f} s)\n")
        time.sleep(0.2)
    return absent


def wait_for_word(store: Any, timeout_s: float = COME_S + SAY_S) -> list[int]:
    """Until node 0 says that all are here; else node 0's number. One key to ask for, however many nodes there are."""
    start = time.monotonic()
    while not store.check([ALL_HERE]):
        if time.monotonic() - start > timeout_s:
            return [0]
        time.sleep(0.2)
    return []


def run_workers(torchrun: list[str]) -> int:
    """Run torchrun to its end; the first failed worker's code, 128 + N for one that signal N killed."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    try:
        run(torchrun)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        sys.stderr.write(f"error: rank {rank} on host {socket.gethostname()} ended with exit code {code}\n")
        return int(code)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def end_the_condemned(store: Any, ended: threading.Event) -> None:
    """When the ranks have reached a verdict, or node 0 has ended, and workers of this node still run, kill them."""
    with contextlib.suppress(RuntimeError, OSError):  # the store is gone
        while not store.check([VERDICT]):
            time.sleep(1)
    time.sleep(3 * SUSPECT_S)  # they need less to find it themselves, and to say so
    ended.set()
    sys.stderr.write("error: node 0 or another rank is gone, and workers here still wait: they are killed\n")
    for child in Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
