"""Training runs in processes that have the libraries loaded already: a fork server pays for them once."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from trainer.config.job import MARKER

PATIENCE_S = 240
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as trainer.cli does before torch is loaded
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.trainer.preloaded"])


def _train(config, log, environ):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environ)
    from trainer.cli import main

    os._exit(main(["train", "--config", config]))


@dataclass
class Run:
    """A job's processes, one a rank, and their log."""

    processes: list
    log: Path

    @property
    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern):
        """Until the log has a line like this."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text, re.MULTILINE):
            assert time.monotonic() < deadline and any(one.is_alive() for one in self.processes), self.text
            time.sleep(0.005)

    def tell(self, number=signal.SIGTERM, rank=0):
        os.kill(self.processes[rank].pid, number)

    def codes(self):
        """The exit codes of all ranks at the end."""
        for process in self.processes:
            process.join(PATIENCE_S)
            if process.is_alive():
                self.kill()
                raise AssertionError(self.text)
        return [process.exitcode for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()

    def rows(self):
        """step -> rank -> the rows trained on; a step's last line counts."""
        found = {}
        for step, rank, numbers in re.findall(r"^(?:\[rank \d+\] )?rows (\d+)  rank (\d+)  ([\d ]+)$", self.text, re.M):
            found.setdefault(int(step), {})[int(rank)] = numbers.split()
        return found


def start(folder, config, ranks=1, **environ):
    """Start a run of `ranks` processes on this machine; config.yaml and the log lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run = Run([], folder / f"log-{time.monotonic_ns()}")
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "LAUNCH_GPUS_PER_NODE": 0,
                 "HF_HOME": folder.parent / "hf", **environ}
        process = SERVER.Process(target=_train, args=(str(folder / "config.yaml"), str(run.log),
                                                      {key: str(value) for key, value in place.items()}))
        process.start()
        run.processes.append(process)
    return run


def stopped_at(whole, part, step, *more):
    """Make the output folder in `part` that the run in `whole` would have left, had it been stopped at this step: with
    copies of this checkpoint, of what says whose the folder is, and of `more`."""
    (part / "out").mkdir(parents=True)
    for name in ("config.yaml", MARKER):
        shutil.copy(whole / "out" / name, part / "out" / name)
    for name in (f"checkpoint-{step}", *more):
        shutil.copytree(whole / "out" / name, part / "out" / name)
    return part


def trained(folder, raw):
    """Loss of each step, and the tensors of the adapter, of a whole run that writes to out/ of this folder."""
    from safetensors.torch import load_file

    run = start(folder, raw)
    assert run.codes() == [0], run.text
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows], load_file(folder / "out/adapter/adapter_model.safetensors")


def changed(sections, changes):
    """The sections of a job with `changes`, by section__field."""
    for path, value in changes.items():
        section, field = path.split("__")
        sections[section][field] = value
    return sections
