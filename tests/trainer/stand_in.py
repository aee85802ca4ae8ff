"""A stand-in for trainer.cli: real torchrun, real signs of life, and a step that is one all-reduce.

It is trainer/cli.py of a package whose other modules are the real ones. HARM says what goes wrong: `RANK:code:N` ends
that rank with N after three steps, `RANK:die` kills it.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

from trainer.errors import TrainError
from trainer.node.exit_files import leave_report, open_report
from trainer.node.stop import Stop

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
harmed, _, harm = os.environ.get("HARM", "-1:").partition(":")


def end(code, text):
    sys.stderr.write(f"error: {text}\n")
    leave_report(os.environ, code, f"error: {text}\n")
    os._exit(code)


stop = Stop(end)
stop.install()
open_report(os.environ)

import torch  # noqa: E402

from trainer.node.ranks import find_peers  # noqa: E402

torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
peers = find_peers(SimpleNamespace(rank=rank, world=world), end)
stop.farewell = peers.leave
peers.start()
peers.ready()
stop.wait_for_step_end()
code, why = 0, ""
try:
    for step in range(1, 100_000):
        told = torch.tensor(int(stop.requested))
        torch.distributed.all_reduce(told)
        os.write(1, f"rank {rank} pid {os.getpid()} step {step}\n".encode())
        if told:
            code, why = 75, "saved"
            break
        if step == 3 and rank == int(harmed):
            if harm == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            code, why = int(harm.partition(":")[2]), "as the test wants it"
            break
        time.sleep(0.05)
except RuntimeError:
    lost = peers.explain()
    code, why = (lost.exit_code, lost.message) if isinstance(lost, TrainError) else (1, "unexplained")
peers.leave(code, why)
sys.stderr.write(f"error: {why}\n")
leave_report(os.environ, code, f"error: {why}\n")
os._exit(code)
