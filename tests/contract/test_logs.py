"""What `launch logs` promises on every back end, through the real command."""

import json
import signal
import subprocess
import time
from datetime import datetime, timedelta

import pytest

from tests.contract.sites import PATIENCE_S

PRINT = r"""echo "$rank one"; echo "[rank $((rank + 7))] marked"; printf '10%%\r50%%\r100%%\n'
printf 'raw \377\033[31mred\033[2J\t  \n'; printf "$rank no line end" """


def test_filters(site):
    run_id = site.submit(PRINT)
    site.wait(run_id, "succeeded")
    want = {node: [f"{node} one", f"[rank {node + 7}] marked", "100%", "raw \ufffd\x1b[31mred\x1b[2J\t  ",
                   f"{node} no line end"] for node in (0, 1)}
    assert site.lines(run_id) == want
    assert site.lines(run_id, "--node", "1") == {1: want[1]}
    assert site.lines(run_id, "--rank", "1") == {1: [line for line in want[1] if "marked" not in line]}
    assert site.lines(run_id, "--grep", "^[01] ") == {node: [want[node][0], want[node][4]] for node in (0, 1)}
    assert site.lines(run_id, "--grep", "^[01] ", "--tail", "1") == {node: [want[node][4]] for node in (0, 1)}
    assert site.lines(run_id, "--since", "1h") == want
    assert site.lines(run_id, "--since", "2099-01-01") == {}
    assert raw(site, run_id, "--node", "1").splitlines() == [
        b"[node 1] 1 one", b"[node 1] [rank 8] marked", b"[node 1] 100%", b"[node 1] raw \xff\x1b[31mred\x1b[2J\t  ",
        b"[node 1] 1 no line end"]


def raw(site, *args):
    """The bytes that nobody looks at."""
    launch = site.launch
    return subprocess.run([launch.python, "-m", "launcher.cli", "logs", *args], cwd=launch.cwd, env=launch.environ(),
                          capture_output=True, check=True).stdout


@pytest.mark.parametrize(("option", "value", "words"), [
    ("--grep", "a(", "Invalid value for '--grep': 'a(' is not a Python regular expression"),
    ("--since", "yesterday", "Invalid value for '--since': must be a duration"),
    ("--node", "2", "error: --node: must be 0 to 1 in this run, not 2"),
    ("--rank", "2", "error: --rank: must be 0 to 1 in this run, not 2"),
])
def test_what_cannot_be_asked_for(local_site, option, value, words):
    run_id = local_site.submit("true")
    done = local_site.launch.run("logs", run_id, option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_two_followers_at_once_and_one_is_interrupted(site):
    gate, go = site.gate()
    run_id = site.submit(f"seq 500; {gate}; echo last")
    stopped, stays = (site.launch.start("logs", "-f", run_id, "--json") for _ in "ab")
    first = [follower.stdout.readline() for follower in (stopped, stays)]
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=PATIENCE_S)
    assert (stopped.returncode, "Traceback" in errors) == (130, False), errors
    go.touch()
    rest, errors = stays.stdout.read(), stays.stderr.read()
    assert stays.wait(PATIENCE_S) == 0, errors
    found = [json.loads(text) for text in (first[1] + rest).splitlines()]
    want = {node: [*map(str, range(1, 501)), "last"] for node in (0, 1)}
    assert {node: [line["text"] for line in found if line["node"] == node] for node in (0, 1)} == want
    site.wait(run_id, "succeeded")
    assert site.lines(run_id) == want


def test_a_reader_that_closes_the_pipe_ends_the_command(local_site):
    run_id = local_site.submit("seq 100000")
    local_site.wait(run_id, "succeeded")
    reader = local_site.launch.start("logs", run_id)
    assert reader.stdout.readline().endswith("] 1\n")
    reader.stdout.close()
    assert reader.wait(PATIENCE_S) == 141
    assert "Traceback" not in reader.stderr.read()


@pytest.mark.parametrize("name", ["local_site", pytest.param("slurm_site", marks=pytest.mark.needs("slurm"))])
def test_since_within_the_log_of_a_running_job(name, request):
    site = request.getfixturevalue(name)
    gate, go = site.gate()
    run_id = site.submit(f"echo old; {gate}; echo new")
    times = site.launch.run_dir(run_id) / "logs/times"
    deadline = time.monotonic() + PATIENCE_S
    while not (times.exists() and times.read_text().count("\n") == 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    marks = [int(line.split()[0]) for line in times.read_text().splitlines()]  # of two nodes, perhaps 10 s apart
    marked = max(marks)
    since = datetime.fromtimestamp(marked).astimezone()
    time.sleep(max(0, marked - time.time()))  # it is rounded up
    go.touch()
    site.wait(run_id, "succeeded")
    assert site.lines(run_id, "--since", since.isoformat()) == {0: ["new"], 1: ["new"]}
    earlier = (since - timedelta(seconds=marked - min(marks) + 1)).isoformat()
    assert site.lines(run_id, "--since", earlier) == {0: ["old", "new"], 1: ["old", "new"]}
    assert {line.split()[2] for line in times.read_text().splitlines()} == {"node-0.r0.log", "node-1.r0.log"}


def test_a_follower_says_why_the_run_waits(fake_slurm_site, tmp_path):
    site = fake_slurm_site
    held = tmp_path / "slurm/pending"
    held.write_text("Priority")
    run_id = site.submit("echo done")
    follower = site.launch.start("logs", "-f", run_id)
    assert follower.stderr.readline() == f"* {run_id} is pending: waiting behind jobs of higher priority (Priority)\n"
    held.unlink()
    assert sorted(follower.stdout.read().splitlines()) == ["[node 0] done", "[node 1] done"]
    assert follower.wait(PATIENCE_S) == 0
