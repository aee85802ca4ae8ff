"""Two nodes on this machine, each with the real entrypoint and the real torchrun: which exit code each ends with, and
how a dead, silent or absent peer is named. The trainer is a stand-in that does one all-reduce a step."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PATIENCE_S = 240  # far less than the 600 s after which a collective would give up
HOST = socket.gethostname()


class Nodes:
    """The entrypoints of one job."""

    def __init__(self, folder, present=(0, 1), **environ):
        package = folder / "trainer"
        package.mkdir()
        for module in (REPO / "trainer").glob("*.py"):
            (package / module.name).symlink_to(module)
        (package / "cli.py").unlink()
        (package / "cli.py").symlink_to(REPO / "tests/trainer/stand_in.py")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.logs = {node: folder / f"node-{node}" for node in present}
        self.processes = {}
        for node, log in self.logs.items():
            place = {"LAUNCH_NODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                     "LAUNCH_GRACE_S": "20", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **environ}
            with log.open("w") as file:
                self.processes[node] = subprocess.Popen(
                    [sys.executable, "-m", "trainer.node.entrypoint", "--config", "c.yaml"], cwd=folder, stdout=file,
                    stderr=subprocess.STDOUT, env={**os.environ, **place}, start_new_session=True)

    def text(self, node):
        return self.logs[node].read_text()

    def wait_for(self, node, pattern):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.text(node))):
            assert time.monotonic() < deadline and self.processes[node].poll() is None, self.text(node)
            time.sleep(0.05)
        return found

    def codes(self):
        return [process.wait(PATIENCE_S) for process in self.processes.values()]

    def end(self):
        """torchrun gives its workers sessions of their own."""
        for node, process in self.processes.items():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for pid in set(re.findall(r"pid (\d+) step", self.text(node))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def nodes(tmp_path):
    """Makes Nodes, and ends them."""
    made = []

    def make(name="job", **kwargs):
        (tmp_path / name).mkdir()
        made.append(Nodes(tmp_path / name, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_every_container_ends_with_its_first_failed_workers_own_code(nodes):
    """The other node has no failure of its own: it ends with 1 and names the peer; with 75, it was told too."""
    jobs = {harm: nodes(harm.replace(":", "-"), HARM=f"1:{harm}") for harm in
            ("code:1", "code:70", "code:78", "code:75", "die")}
    wanted = {"code:1": [1, 1], "code:70": [1, 70], "code:78": [1, 78], "code:75": [75, 75], "die": [1, 137]}
    assert {harm: job.codes() for harm, job in jobs.items()} == wanted
    assert f"error: rank 1 on host {HOST} ended with exit code 78: as the test wants it" in jobs["code:78"].text(0)
    assert re.search(rf"error: rank 1 on host {HOST} is gone \(no sign of life for \d+ s\)", jobs["die"].text(0))
    assert not [job.text(0) for job in jobs.values() if "Traceback" in job.text(0)]


def test_told_to_stop_both_containers_end_with_75_though_one_alone_was_told(nodes):
    job = nodes()
    job.wait_for(1, "step 3")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.codes() == [75, 75]


def test_node_0_dead_or_a_rank_silent_ends_the_other_node_and_names_it(nodes):
    dead, silent = nodes("dead"), nodes("silent")
    pid = int(silent.wait_for(1, r"rank 1 pid (\d+) step 3")[1])
    os.kill(pid, signal.SIGSTOP)
    # two seconds: by then rank 1 has read who its peer is, from the store that dies with node 0
    os.kill(int(dead.wait_for(0, r"rank 0 pid (\d+) step 40\b")[1]), signal.SIGKILL)
    os.killpg(dead.processes[0].pid, signal.SIGKILL)
    assert dead.codes() == [-signal.SIGKILL, 1]
    assert re.search(rf"error: rank 0 on host {HOST} is gone", dead.text(1))
    assert silent.codes() == [1, 1]  # the stopped worker's own node too
    assert re.search(rf"error: rank 1 on host {HOST} is gone \(no sign of life for \d+ s\)", silent.text(0))
    assert not Path(f"/proc/{pid}").exists()


def test_a_node_that_never_came_is_named(nodes):
    job = nodes(present=(0,))
    job.wait_for(0, r"trainer: waiting for node 1 of 2 \(\d+ s\)")
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.codes() == [75]


def test_a_node_that_never_comes_is_a_failure():
    """Not 75, with which a scheduler would start all of them again for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = ("import sys; from trainer.node import agent; agent.COME_S = 1; "
              f"sys.exit(agent.main(['2', '0', 'localhost', '{port}']))")
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "error: node 1 of 2 never came (1 s)" in done.stderr) == (1, True), done.stderr
