"""This machine as a back end: what the contract suite does not ask of every back end."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from launcher.backends import processes as shell
from launcher.backends.hosts.detached import is_alive, start_script
from launcher.backends.local.backend import LocalBackend
from launcher.errors import BackendError
from launcher.runs.store import RunStore
from tests.contract.sites import PATIENCE_S, local_at


@pytest.fixture
def site(launch):
    return local_at(launch)


def script_of(site, run_id):
    """The process of the run's script, which leads its session."""
    return int(json.loads((site.launch.run_dir(run_id) / "run.json").read_text())["place"]["job_id"])


def until(condition):
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_node_is_started_again_with_all_others(site):
    marker = site.launch.cwd / "tried"
    run_id = site.submit(f'echo "$rank try"; if [ "$rank" = 1 ] && mkdir {marker} 2>&-; then exit 3; fi; '
                         f"until [ -e {marker} ]; do sleep 0.05; done; echo done", restarts=1)
    site.wait(run_id, "succeeded")
    lines = site.lines(run_id)
    assert lines[1] == ["1 try", "1 try", "done"]
    assert "launch: attempt 0 ended with exit code 3" in lines[0]


def test_the_budget_of_restarts_ends(site):
    run_id = site.submit('echo "$rank try"; exit 3', restarts=2, resources={"nodes": 1})
    assert site.wait(run_id, "failed")["exit_code"] == 3
    assert site.lines(run_id)[0].count("0 try") == 3


def test_a_wrong_configuration_is_not_tried_again(site):
    run_id = site.submit('echo "$rank try"; exit 78', restarts=5, resources={"nodes": 1})
    assert site.wait(run_id, "failed")["exit_code"] == 78
    assert site.lines(run_id) == {0: ["0 try"]}


def test_a_job_that_does_not_stop_is_killed_after_its_grace(site):
    site.profile = {"grace": "1s"}
    run_id = site.submit("trap '' TERM; echo up; while true; do sleep 0.1; done", resources={"nodes": 1})
    run = site.launch.json("list")[-1]
    until(lambda: site.lines(run_id))
    site.launch.ok("cancel", run_id)
    assert site.leftovers(run) == []
    assert site.status(run_id)["state"] == "cancelled"


@pytest.mark.parametrize(("answer", "state"), [("\n", "running"), ("n\n", "running"), ("y\n", "cancelled")])
def test_a_cancel_without_a_run_asks_a_person_and_names_the_run(site, answer, state):
    run_id = site.submit("echo up; trap 'exit 1' TERM; sleep 600 & wait", resources={"nodes": 1})
    site.wait(run_id, "running")
    keyboard, terminal = pty.openpty()
    os.write(keyboard, answer.encode())
    done = site.launch.run("cancel", stdin=terminal)
    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == 0
    assert re.match(rf"cancel {run_id} \(local, running, started \d+ s ago\)\? \[y/N\]: ", done.stderr)
    assert site.status(run_id)["state"] == state
    site.launch.ok("cancel", run_id)


def test_what_a_job_leaves_in_the_background_ends_with_a_cancel(site):
    run_id = site.submit("(trap '' TERM; sleep 600) & echo up; trap 'exit 1' TERM; wait", resources={"nodes": 1})
    run = site.launch.json("list")[-1]
    until(lambda: site.lines(run_id))
    site.launch.ok("cancel", run_id)
    assert site.leftovers(run) == []


def test_a_killed_run_is_told_as_one(site):
    run_id = site.submit("echo up; sleep 600", resources={"nodes": 2})
    run = site.launch.json("list")[-1]
    until(lambda: len(site.lines(run_id)) == 2)
    shell.signal_session(script_of(site, run_id), signal.SIGKILL)
    until(lambda: site.leftovers(run) == [])
    status = site.status(run_id)
    assert (status["state"], "without an exit code" in status["reason"]) == ("failed", True)


def test_nothing_of_the_script_lives_on(site):
    run_id = site.submit("echo done")
    site.wait(run_id, "succeeded")
    script = str(site.launch.run_dir(run_id) / "render.sh").encode()

    def alive():
        return [path for path in Path("/proc").glob("[0-9]*/cmdline") if script in read_bytes(path)]

    until(lambda: not alive())


def read_bytes(path):
    """Of a process that may have ended meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_nodes_that_outlive_the_script_end_with_a_cancel(site):
    run_id = site.submit("echo up; sleep 600", resources={"nodes": 2})
    run = site.launch.json("list")[-1]
    until(lambda: len(site.lines(run_id)) == 2)
    os.kill(script_of(site, run_id), signal.SIGKILL)
    assert site.status(run_id)["state"] == "running"
    site.launch.ok("cancel", run_id)
    assert site.leftovers(run) == []
    assert site.status(run_id)["state"] == "cancelled"


def test_after_a_restart_of_the_machine_the_run_has_failed(site):
    """Its lock is free, and its number belongs to somebody else."""
    run_id = site.submit("true", resources={"nodes": 1})
    site.wait(run_id, "succeeded")
    folder = site.launch.run_dir(run_id)
    (folder / "exit_code").unlink()
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        saved = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**saved, "place": {"job_id": str(other.pid)}}))
        status = site.status(run_id)
        assert (status["state"], "the machine was restarted" in status["reason"]) == ("failed", True)
        site.launch.ok("cancel", run_id)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_pre_empted_node_starts_again_for_free(site):
    """Twice, with no restarts to spend; the other node is told, too, and saves."""
    script = ('trap "echo saved; exit 75" TERM; tries=$(ls tried-$rank-* 2>&- | wc -l); echo "try $tries"; '
              '>tried-$rank-$tries; if [ "$tries" -lt 2 ]; then sleep 600 & wait; fi')
    run_id = site.submit(script, restarts=0)
    run = RunStore(site.launch.home).find(run_id)
    local = LocalBackend(RunStore(site.launch.home), site.launch.environ())
    for attempt in range(2):
        until(lambda line=f"try {attempt}": [lines.count(line) for lines in site.lines(run_id).values()] == [1, 1])
        local.preempt(run, attempt)
    status = site.wait(run_id, "succeeded")
    assert [(node["exit_code"], node["restarts"]) for node in status["nodes"]] == [(0, 2), (0, 2)]
    told = [f"launch: attempt {attempt} ended with exit code 75" for attempt in range(2)]
    assert site.lines(run_id)[0] == ["try 0", "saved", told[0], "try 1", "saved", told[1], "try 2"]
    assert site.lines(run_id)[1] == ["try 0", "saved", "try 1", "saved", "try 2"]
    with pytest.raises(BackendError, match="node 0 does not run"):
        local.preempt(run, 0)


def test_75_without_having_been_told_spends_a_restart(site):
    run_id = site.submit("echo try; exit 75", restarts=1, resources={"nodes": 1})
    status = site.wait(run_id, "failed")
    assert (status["exit_code"], status["reason"]) == (75, "exit code 75")
    assert site.lines(run_id)[0].count("try") == 2


def test_nothing_of_an_attempt_lives_on(site):
    """Not what it left in the background, and not into the next attempt."""
    run_id = site.submit("sleep 600 & exit 3", restarts=1, resources={"nodes": 1})
    run = site.launch.json("list")[-1]
    site.wait(run_id, "failed")
    until(lambda: site.leftovers(run) == [])


def test_a_folder_with_odd_characters(site, tmp_path):
    site.launch.home = tmp_path / "it's a \"home\" $x"
    site.launch.cwd = tmp_path / "wörk space"
    site.launch.cwd.mkdir()
    (site.launch.cwd / "module.py").write_text("")
    run_id = site.submit('pwd; python -c "import module; print(module.__name__)"', code=".", resources={"nodes": 1})
    site.wait(run_id, "succeeded")
    assert site.lines(run_id) == {0: [str(site.launch.cwd), "module"]}


def test_a_missing_runtime_is_refused_and_leaves_nothing(site):
    site.profile = {"container_runtime": "podman"}
    site.launch.env["PATH"] = "/nowhere"
    done = site.launch.run("submit", site.job("true"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "podman: no such command on this machine" in done.stderr
    assert list((site.launch.home / "runs").iterdir()) == []


def test_local_runs_in_front(site):
    done = site.launch.run("local", site.job('echo "$rank: $LAUNCH_NODES"'))
    assert (done.returncode, done.stdout) == (0, "")
    assert {"[node 0] 0: 2", "[node 1] 1: 2"} <= set(done.stderr.splitlines())
    failed = site.launch.run("local", site.job("exit 9"))
    assert failed.returncode == 5
    assert "exit code 9" in failed.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_job_in_front(site, number):
    process = site.launch.start("local", site.job("trap 'echo saved; exit 0' TERM; echo up; sleep 600 & wait"))
    until(lambda: "up" in process.stderr.readline())
    run = site.launch.json("list")[-1]
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 130
    assert site.leftovers(run) == []
    assert site.status(run["run"])["state"] == "cancelled"
    assert "saved" in site.lines(run["run"])[0]


def test_a_profile_is_not_needed_in_front(site):
    job = site.job("true")
    (site.launch.cwd / job).write_text((site.launch.cwd / job).read_text() + "cluster: absent\n")
    assert site.launch.run("submit", job).returncode == 2
    assert site.launch.run("local", job).returncode == 0


def test_two_at_once_in_front_are_two_runs_with_ports_of_their_own(site):
    job = site.job('until [ -e go ]; do sleep 0.05; done; echo "port $MASTER_PORT"', resources={"nodes": 1})
    started = [site.launch.start("local", job) for _ in range(2)]
    until(lambda: [run["state"] for run in site.launch.json("list")] == ["running"] * 2)
    (site.launch.cwd / "go").touch()
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    ports = {line for text in said for line in text.splitlines() if "port " in line}
    assert len(ports) == 2
    runs = [run["run"] for run in site.launch.json("list")]
    assert sorted(runs) == sorted([min(runs, key=len), f"{min(runs, key=len)}-2"])


def test_many_submits_at_once_are_many_runs(site):
    job = site.job("true")
    started = [site.launch.start("submit", job) for _ in range(4)]
    handles = {process.communicate()[0] for process in started}
    assert len(handles) == 4
    assert len(site.launch.json("list")) == 4


def test_a_section_for_another_back_end_is_noted(launch):
    (launch.cwd / "job.yaml").write_text("name: a\nrun: ['true']\npod: {hostNetwork: true}\n")
    done = launch.run("local", "job.yaml")
    assert done.returncode == 0
    assert "pod: ignored, because it is not for local" in done.stderr


def test_those_who_look_at_once_do_not_see_each_other(tmp_path):
    """A probe that took the lock for itself made the others believe in a run that had ended."""
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_alive(tmp_path)


def test_a_look_does_not_keep_a_run_from_starting(tmp_path):
    (tmp_path / "render.sh").write_text("sleep 600\n")
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        session = start_script(tmp_path, tmp_path, dict(os.environ))
    assert is_alive(tmp_path)
    shell.signal_session(session, signal.SIGKILL)
