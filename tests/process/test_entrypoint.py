"""What a job runs on every node: placement, the command, signals, and the worker's own exit code."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.node import entrypoint
from trainer.node.entrypoint import (
    Placement,
    essence,
    final_code,
    leave_message,
    read_placement,
    trainer_command,
    wait_for_master,
)
from trainer.node.exit_files import Report, leave_report, open_report, read_reports
from trainer.node.finish import finished_by, is_finished, mark_finished, mark_nothing_left

ALONE = {"nodes": 1, "processes": 1, "rank": 0, "master": "127.0.0.1", "port": 29500, "grace_s": 120}


def placed(**changes):
    return Placement(**{**ALONE, **changes})


def test_placement_is_read_from_the_environment():
    assert read_placement({}) == placed()
    environ = {"LAUNCH_NODES": "4", "LAUNCH_PROCESSES_PER_NODE": "8", "MASTER_ADDR": "n1", "MASTER_PORT": "1234",
               "LAUNCH_GRACE_S": "5", "JOB_COMPLETION_INDEX": "3"}
    found = read_placement(environ)
    assert found == Placement(nodes=4, processes=8, rank=3, master="n1", port=1234, grace_s=5)
    assert found.world == 32
    assert read_placement({**environ, "NODE_RANK": "2"}).rank == 2


def test_one_process_is_started_directly():
    alone = [sys.executable, "-m", "trainer.cli", "train", "--config", "c.yaml"]
    assert trainer_command(placed(), "c.yaml", "/s") == alone


def test_several_processes_are_started_by_torchrun():
    command = trainer_command(placed(nodes=2, processes=8, rank=1, master="m"), "c.yaml", "/s")
    assert command[1:7] == ["-m", "trainer.node.agent", "2", "1", "m", "29500"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--node-rank=1", "--master-addr=m", "--max-restarts=0"} <= set(command)
    assert "--log-dir=/s" in command
    assert command[-5:] == ["-m", "trainer.cli", "train", "--config", "c.yaml"]


def test_the_master_is_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert wait_for_master(placed(nodes=2, rank=1, port=port), timeout_s=10)
    assert not wait_for_master(placed(nodes=2, rank=1, port=port), timeout_s=0.1)
    assert wait_for_master(placed(nodes=2, rank=0, port=port), timeout_s=10)
    assert not wait_for_master(placed(nodes=2, rank=0, master="no-such-host.invalid"), timeout_s=0.1)


@pytest.fixture
def finished_run(tmp_path):
    """A config whose output folder has the mark of the run `done-1`."""
    (tmp_path / "out").mkdir()
    mark_finished(tmp_path / "out", {"LAUNCH_RUN_ID": "done-1"})
    (tmp_path / "c.yaml").write_text(f"settings: {{output_dir: {tmp_path}/out}}\n")
    return tmp_path / "c.yaml"


def test_a_node_that_is_started_after_the_end_has_nothing_to_do(finished_run):
    """A pod that failed behind the last step is started alone; its peers have ended and will never come."""
    place = {"LAUNCH_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
             "LAUNCH_RUN_ID": "done-1"}
    done = subprocess.run([sys.executable, "-m", "trainer.node.entrypoint", "--config", str(finished_run)], text=True,
                          env={**os.environ, **place}, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert "the results of this run are written already" in done.stderr


def test_the_end_of_another_run_in_the_same_folder_is_not_ours(finished_run):
    assert is_finished(finished_run, {"LAUNCH_RUN_ID": "done-1"})
    assert not is_finished(finished_run, {"LAUNCH_RUN_ID": "done-2"})
    mark_nothing_left(finished_run.parent / "out", {"LAUNCH_RUN_ID": "done-2"})
    assert all(is_finished(finished_run, {"LAUNCH_RUN_ID": run}) for run in ("done-1", "done-2"))
    assert finished_by(finished_run.parent / "out") == "done-1"
    assert not is_finished(finished_run, {})
    assert not is_finished(finished_run.parent / "absent.yaml", {"LAUNCH_RUN_ID": "done-1"})


def test_the_end_is_noticed_while_waiting_for_node_0():
    answers = iter([False, False, True])
    assert not wait_for_master(placed(nodes=2, rank=1, port=1), timeout_s=600, finished=lambda: next(answers))
    assert next(answers, "asked until then") == "asked until then"


NODE_0 = """
import sys, time
from trainer.node.agent import join_store
store = join_store("127.0.0.1", int(sys.argv[1]), 0)
print(store.check(["launch/node/1"]), flush=True)
while store.add("launch/came/1", 0) < 2:
    time.sleep(0.05)
print("turned away", flush=True)
time.sleep(60)
"""
NODE_1 = """
import sys
from trainer.node.agent import join_store
store = join_store("127.0.0.1", int(sys.argv[1]), 1)
print(store.get("launch/node/0").decode(), flush=True)
"""


def test_a_node_started_again_alone_waits_for_the_next_node_0():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])

    def start(script):
        return subprocess.Popen([sys.executable, "-c", script, port], stdout=subprocess.PIPE, text=True)

    old = start(NODE_0)
    assert old.stdout.readline() == "False\n"
    with start(NODE_1) as first:
        assert first.stdout.readline() == f"{socket.gethostname()}\n"
    second = start(NODE_1)
    assert old.stdout.readline() == "turned away\n"
    assert second.poll() is None
    old.kill()
    old.communicate()
    new = start(NODE_0)
    try:
        assert second.wait(60) == 0
        assert second.stdout.read() == f"{socket.gethostname()}\n"
    finally:
        for process in (new, second):
            process.kill()
            process.communicate()


TERM = 128 + signal.SIGTERM


@pytest.mark.parametrize(("code", "workers", "final"), [
    (0, [0, 0], 0), (78, [1, 78], 78), (137, [75], 137), (1, [75, 1], 1),
    (TERM, [75, 75], 75), (TERM, [], 75), (TERM, [0, 75], 75), (TERM, [75, 70], 70), (TERM, [1, 75], 1),
    (TERM, [75, None], 137), (75, [75], 75), (75, [75, 0], 75), (75, [], 75), (75, [None], 1), (75, [75, None], 1)])
def test_the_first_failed_workers_own_code_counts(code, workers, final):
    left = [Report(rank, worker, "") for rank, worker in enumerate(workers)]
    assert final_code(code, left, stop_requested=True) == final


@pytest.mark.parametrize(("code", "workers", "final"), [
    (75, [75, 75], 75), (TERM, [75, 75], 75),  # a peer's node was signalled, or a worker alone
    (75, [], 1), (75, [None], 1), (75, [None, 75], 1), (75, [75, 70], 70), (TERM, [], TERM)])
def test_75_without_a_stop_and_a_save_is_an_ordinary_failure(code, workers, final):
    left = [Report(rank, worker, "") for rank, worker in enumerate(workers)]
    assert final_code(code, left, stop_requested=False) == final


def start(tmp_path, body, **environ):
    """The real entrypoint, with a stand-in for the trainer."""
    package = Path(entrypoint.__file__).parents[1]
    (tmp_path / "trainer").mkdir()
    for name in ("__init__.py", "errors.py", "node"):
        (tmp_path / "trainer" / name).symlink_to(package / name)
    (tmp_path / "trainer/cli.py").write_text(body)
    argv = [sys.executable, "-m", "trainer.node.entrypoint", "--config", "c.yaml"]
    return subprocess.Popen(argv, cwd=tmp_path, text=True,
                            env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_trainers_exit_code_is_the_entrypoints(tmp_path):
    process = start(tmp_path, "import sys; print(sys.argv[1:], flush=True); sys.exit(70)")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (70, f"['train', '--config', '{tmp_path}/c.yaml']\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_trainer_once_as_term(tmp_path, number):
    process = start(tmp_path, """
import os, signal, sys, time
count = 0
def stop(number, frame):
    global count
    count += 1
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
signal.signal(signal.SIGTERM, stop)
os.write(1, b"ready\\n")
while not count: time.sleep(0.05)
time.sleep(0.5)  # a second one would come now
sys.exit(75 if count == 1 else 1)
""")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(number)
    rest, errors = process.stdout.read(), process.stderr.read()
    assert (process.wait(60), rest) == (75, ""), errors


def test_a_worker_that_calls_exit_75_by_itself_has_failed(tmp_path):
    process = start(tmp_path, "import os, sys\nfrom trainer.node.exit_files import open_report\n"
                              "open_report(os.environ)\nsys.exit(75)")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "no stop was requested" in errors) == (1, True)


def test_a_node_0_that_never_comes_is_a_failure(tmp_path, monkeypatch, capsys):
    """Not 75, with which a scheduler would start the node again for ever."""
    monkeypatch.setattr(entrypoint, "PEER_WAIT_S", 0.1)
    monkeypatch.setenv("LAUNCH_NODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    handlers = {number: signal.getsignal(number) for number in entrypoint.STOP_SIGNALS}
    try:
        assert entrypoint.main(["--config", str(tmp_path / "c.yaml")]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "did not come up" in capsys.readouterr().err


def test_a_killed_trainer_ends_as_in_a_shell(tmp_path):
    process = start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(60) == 137


def test_a_node_that_waits_for_its_peers_can_be_stopped(tmp_path):
    process = start(tmp_path, "", LAUNCH_NODES="2", NODE_RANK="1", MASTER_ADDR="no-such-host.invalid")
    status = Path(f"/proc/{process.pid}/status")
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.05)  # until it has a handler
    process.terminate()
    assert process.wait(60) == 75


def test_the_termination_message_is_the_first_failed_workers_words(tmp_path, monkeypatch):
    left = [Report(1, 1, "error: rank 0 is gone\n"), Report(0, 78, "trace\n" * 1000 + "error: no such file\n")]
    text = essence(78, left)
    assert text.startswith(f"rank 0 on host {socket.gethostname()}: exit code 78\n")
    assert text.rstrip().endswith("error: no such file")
    assert len(text.encode()) <= 4000
    assert essence(137, [Report(0, None, "")]).endswith("exit code 137; the log says more\n")
    monkeypatch.setattr(entrypoint, "TERMINATION_LOG", tmp_path / "termination-log")
    leave_message(text)
    assert list(tmp_path.iterdir()) == []  # no container, no message
    entrypoint.TERMINATION_LOG.touch()
    leave_message(text)
    assert entrypoint.TERMINATION_LOG.read_text() == text


def test_reports_are_read_in_the_order_in_which_they_were_left(tmp_path):
    environ = {"LAUNCH_EXIT_FILES": str(tmp_path)}
    for rank in ("0", "1", "2"):
        open_report({**environ, "RANK": rank})
    for number, rank in enumerate(("2", "0")):
        leave_report({**environ, "RANK": rank}, 70 + number, f"words of {rank}\nand more")
        os.utime(tmp_path / f"rank-{rank}", (2e9 + number, 2e9 + number))
    assert read_reports(tmp_path)[1:] == [Report(2, 70, "words of 2\nand more"), Report(0, 71, "words of 0\nand more")]
    assert read_reports(tmp_path)[0] == Report(1, None, "")
