"""The Slurm back end through the real command, on a fake Slurm that keeps state and really runs the scripts."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launcher.backends.slurm.status import from_scontrol, slurm_status
from launcher.runs.status import State
from tests.cli_runner import Launch
from tests.fakes.slurm.cluster import FakeSlurm

PATIENCE_S = 60


class Bench:
    """The command, the cluster, and a folder to write jobs in."""

    def __init__(self, launch: Launch, cluster: FakeSlurm) -> None:
        self.launch, self.cluster = launch, cluster
        launch.env.update(cluster.environ())

    def job(self, script: str, *, profile: dict | None = None, **fields: object) -> str:
        """A two-node job that runs a bash script on each node."""
        job = {"name": "job", "cluster": "c", "resources": {"nodes": 2}, "run": ["bash", "-c", script], **fields}
        profiles = {"c": {"backend": "slurm", **(profile or {})}}
        (self.launch.cwd / "job.yaml").write_text(yaml.safe_dump(job, allow_unicode=True))
        (self.launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))
        return "job.yaml"

    def submit(self, script: str, **fields: object) -> str:
        """Submit it; returns Slurm's number."""
        return self.launch.ok("submit", self.job(script, **fields)).strip().rpartition("/")[2]

    def status(self) -> dict:
        """The latest run."""
        return self.launch.json("status")[0]

    def wait(self, *states: str) -> dict:
        """Poll until the latest run is in one of `states`."""
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.status())["state"] not in states:
            assert time.monotonic() < deadline, f"still {status}\n{self.batch_log()}"
            time.sleep(0.1)
        return status

    def batch_log(self) -> str:
        """What the batch script printed."""
        return (self.run_dir() / "logs/node-0.r0.log").read_text()

    def run_dir(self) -> Path:
        """The folder of the latest run."""
        return self.launch.run_dir(self.launch.json("list")[-1]["run"])

    def slurm(self, *argv: str) -> str:
        """One of Slurm's commands, as somebody else would type it."""
        return subprocess.run(argv, env=self.launch.environ(), check=True, stdout=subprocess.PIPE, text=True).stdout

    def until_queue_is_empty(self) -> None:
        """Until all jobs have ended."""
        deadline = time.monotonic() + PATIENCE_S
        while queued := self.slurm("squeue", "--noheader", "--format=%i %T"):
            assert time.monotonic() < deadline, queued
            time.sleep(0.1)

    def lines(self) -> list[str]:
        """The log of the latest run."""
        return self.launch.ok("logs").splitlines()

    def until(self, text: str) -> None:
        """Until a line is in the log."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(text in line for line in self.lines()):
            assert time.monotonic() < deadline, f"no {text!r} in {self.lines()}\n{self.batch_log()}"
            time.sleep(0.1)


@pytest.fixture
def bench(launch, tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Bench(launch, FakeSlurm(folder))


# On a first attempt SLURM_RESTART_COUNT is not set.
FIRST = '[ -z "${SLURM_RESTART_COUNT:-}" ]'


def test_a_good_run_with_its_nodes(bench):
    done = bench.launch.run("submit", "--follow", bench.job('echo "$NODE_RANK at $MASTER_ADDR:$MASTER_PORT"'))
    assert (done.returncode, done.stdout) == (0, "slurm://fake/1\n"), done.stderr
    assert {"[node 0] 0 at n1:20001", "[node 1] 1 at n1:20001"} <= set(done.stderr.splitlines())
    status = bench.wait("succeeded")
    assert status["exit_code"] == 0
    assert [(node["host"], node["state"], node["exit_code"]) for node in status["nodes"]] == [
        ("n1", "succeeded", 0), ("n2", "succeeded", 0)]  # fmt: skip


def test_the_first_node_that_failed_tells_the_code(bench):
    """srun's own answer is the largest code, here that of the node which was told to stop."""
    script = 'trap "exit 99" TERM; if [ "$NODE_RANK" = 1 ]; then exit 7; fi; sleep 60 & wait'
    done = bench.launch.run("submit", "--follow", bench.job(script))
    assert done.returncode == 5
    assert "failed: exit code 7" in done.stderr
    status = bench.status()
    assert (status["state"], status["exit_code"]) == ("failed", 7)
    assert [node["exit_code"] for node in status["nodes"]] == [99, 7]


def test_failures_start_again_while_the_budget_lasts(bench):
    bench.submit(f"{FIRST} && exit 3; echo again", restarts=1)
    status = bench.wait("succeeded")
    assert [node["restarts"] for node in status["nodes"]] == [1, 1]
    assert "[node 0] launch: ended with exit code 3; waiting to be restarted" in bench.lines()
    assert {"[node 0] again", "[node 1] again"} <= set(bench.lines())


def test_the_budget_ends(bench):
    bench.submit("echo attempt; exit 3", restarts=2, resources={"nodes": 1})
    assert bench.wait("failed")["exit_code"] == 3
    assert bench.lines().count("attempt") == 3


@pytest.mark.parametrize(("lines", "failed", "code"), [
    (["exit 0"], "exit 0", 1),
    (["true", "source no-such-file || exit 4"], "source no-such-file || exit 4", 4),
    (["set -e", "false"], "false", 1),
    (["echo 'a"], "echo 'a", 2)])
def test_a_setup_line_that_ends_the_script_is_named_and_is_no_success(bench, lines, failed, code):
    bench.submit("echo never", sbatch={"setup": lines})
    status = bench.wait("failed", "succeeded")
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert status["reason"] == f"sbatch.setup failed: {failed}: exit code {code}"
    assert f"launch: sbatch.setup: exit code {code}: {failed}" in bench.batch_log()


def test_a_wrong_configuration_is_never_tried_again(bench):
    bench.submit("echo attempt; exit 78", restarts=5, resources={"nodes": 1})
    assert bench.wait("failed")["exit_code"] == 78
    assert bench.lines().count("attempt") == 1


def test_told_before_the_limit_and_saved_starts_again_for_free(bench):
    job_id = bench.submit(f'trap "echo saved; exit 75" TERM; echo up; if {FIRST}; then sleep 60 & wait; fi', restarts=0)
    bench.until("[node 1] up")
    bench.slurm("scancel", "--batch", "--signal=USR1", job_id)
    status = bench.wait("succeeded")
    assert [node["restarts"] for node in status["nodes"]] == [1, 1]
    assert {"[node 0] saved", "[node 1] saved"} <= set(bench.lines())


def test_a_node_whose_script_is_told_after_its_command_has_ended_was_told(bench):
    bench.submit(f"if {FIRST}; then (sleep 0.5; kill -TERM $PPID) & exit 75; fi", restarts=0)
    assert [node["restarts"] for node in bench.wait("succeeded")["nodes"]] == [1, 1]


def test_a_node_killed_without_a_word_outweighs_a_saved_state(bench):
    up = bench.launch.cwd / "node-0-is-up"  # with its trap set
    bench.submit(f'trap "exit 75" TERM; if [ "$NODE_RANK" = 0 ]; then touch {up}; else '
                 f'until [ -e {up} ]; do sleep 0.1; done; kill -9 $PPID $$; fi; sleep 60 & wait')
    assert bench.wait("failed")["exit_code"] == 137


def test_cancel_gives_time_and_does_not_start_again(bench):
    bench.submit('trap "sleep 0.3; echo saved; exit 75" TERM; echo up; sleep 60 & wait', restarts=3)
    bench.until("[node 1] up")
    bench.launch.ok("cancel", "--yes")
    status = bench.status()
    assert (status["state"], status["reason"]) == ("cancelled", "cancelled by the user")
    assert {"[node 0] saved", "[node 1] saved"} <= set(bench.lines())
    again = bench.launch.run("cancel", "--yes")
    assert (again.returncode, "ended already" in again.stderr) == (0, True)


def test_a_job_that_does_not_stop_is_killed(bench):
    bench.submit('trap "" TERM; echo up; while true; do sleep 0.1; done')
    bench.until("[node 1] up")
    bench.launch.ok("cancel", "--yes")
    assert bench.status()["state"] == "cancelled"


def test_cancelled_by_somebody_else(bench):
    job_id = bench.submit('trap "exit 75" TERM; echo up; sleep 60 & wait', restarts=3)
    bench.until("[node 1] up")
    bench.slurm("scancel", job_id)
    status = bench.wait("cancelled")
    assert status["reason"] == "cancelled in Slurm (CANCELLED)"


def test_a_job_that_waits_says_why_and_can_be_cancelled(bench):
    bench.cluster.hold("Resources")
    bench.submit("true")
    status = bench.status()
    assert (status["state"], status["reason"], status["nodes"]) == ("pending", "waiting for free nodes (Resources)", [])
    bench.launch.ok("cancel", "--yes")
    assert bench.status()["state"] == "cancelled"


def test_a_list_of_runs_is_one_query_and_one_more_for_each_new_end(bench):
    ended = bench.submit("true")
    bench.until_queue_is_empty()
    running = bench.submit("sleep 600")
    bench.wait("running")
    bench.cluster.hold("Priority")
    waiting = bench.submit("true")
    before = len(bench.cluster.calls("squeue", "scontrol", "sacct"))
    states = [found["state"] for found in bench.launch.json("list")]
    assert states == ["succeeded", "running", "pending"]
    assert [found["state"] for found in bench.launch.json("list")] == states
    assert bench.cluster.calls("squeue", "scontrol", "sacct")[before:] == [
        f"squeue --noheader --jobs={ended},{running},{waiting}", "scontrol show job",
        f"squeue --noheader --jobs={running},{waiting}"]
    bench.cluster.go_down()
    listed = bench.launch.run("list")
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:]] == ["succeeded", "unknown", "unknown"]
    assert listed.stderr.count("Unable to contact slurm controller") == 1
    bench.cluster.come_back()
    bench.cluster.release()
    bench.launch.ok("cancel", bench.launch.json("list")[1]["run"])


@pytest.mark.parametrize(("reason", "words"), [
    ("Resources", "waiting for free nodes (Resources)"),
    ("Priority", "waiting behind jobs of higher priority (Priority)"),
    ("QOSMaxGRESPerUser", "a QOS limit is reached (QOSMaxGRESPerUser)"),
    ("AssocGrpGRES", "an account limit is reached (AssocGrpGRES)"),
    ("ReqNodeNotAvail,", "nodes that it needs are down, drained or reserved (ReqNodeNotAvail)"),
    ("None", "not yet considered by the scheduler"),
    ("SomethingNew", "SomethingNew"),
])
def test_why_it_waits(tmp_path, reason, words):
    record = from_scontrol(f"JobId=1 JobName=job\n   JobState=PENDING Reason={reason} Dependency=(null)\n")
    status = slurm_status(tmp_path, record, {})
    assert (status.state, status.reason, status.nodes) == (State.PENDING, words, ())


@pytest.mark.parametrize(("state", "exit_code", "words"), [
    ("OUT_OF_MEMORY", "0:125", "it used more memory than resources.memory_per_node (OUT_OF_MEMORY)"),
    ("TIMEOUT", "0:15", "it reached its time limit (TIMEOUT)"),
    ("NODE_FAIL", "1:0", "a node failed (NODE_FAIL)"),
    ("PREEMPTED", "0:9", "it was preempted by a job of higher priority (PREEMPTED)"),
])
def test_how_it_ended(bench, state, exit_code, words):
    bench.cluster.end_jobs_as(state, exit_code)
    bench.submit("exit 1")
    status = bench.wait("failed")
    deadline = time.monotonic() + PATIENCE_S
    while status["reason"] == "exit code 1" and time.monotonic() < deadline:  # Slurm notes the end after the script
        status = bench.status()
    assert (status["reason"], status["exit_code"]) == (words, 1)


def test_a_forgotten_job_is_known_by_what_it_left(bench):
    job_id = bench.submit("exit 4")
    bench.wait("failed")
    bench.cluster.forget(job_id)
    status = bench.status()
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 4, "exit code 4")
    assert [node["host"] for node in status["nodes"]] == ["n1", "n2"]


def test_one_of_several_clusters_is_named_to_every_command(bench):
    """Its numbers are its own: without the name another cluster's job would be asked about, and cancelled."""
    bench.cluster.be_one_of_several("west")
    job_id = bench.submit("echo up; trap 'exit 1' TERM; sleep 600 & wait")
    assert bench.launch.json("list")[0]["handle"] == f"slurm://west/{job_id}"
    bench.until("[node 1] up")
    record = bench.run_dir() / "run.json"
    assert json.loads(record.read_text())["place"] == {"job_id": job_id, "slurm_cluster": "west"}
    bench.launch.ok("cancel", "--yes")
    assert bench.status()["state"] == "cancelled"


def test_a_killed_submit_to_one_of_several_clusters_is_found_there(bench):
    bench.cluster.be_one_of_several("west")
    bench.submit("echo up; trap 'exit 1' TERM; sleep 600 & wait")
    bench.until("[node 1] up")
    record = bench.run_dir() / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "place": {}, "handle": "unsent://x"}))
    bench.launch.env["SLURM_CLUSTERS"] = "east,west"
    bench.launch.ok("cancel", "--yes")
    assert bench.status()["state"] == "cancelled"


def forget_end(bench):
    """As if nobody had looked at the run since it ended."""
    record = bench.run_dir() / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "end": None}))


def test_a_forgotten_job_that_left_nothing(bench):
    job_id = bench.submit("true")
    bench.wait("succeeded")
    (bench.run_dir() / "exit_code").unlink()
    bench.cluster.forget(job_id)
    assert bench.status()["state"] == "succeeded"  # somebody has seen it
    forget_end(bench)
    assert bench.status()["state"] == "unknown"
    bench.cluster.keep_accounts()
    assert bench.status()["state"] == "succeeded"


def test_accounting_tells_who_ended_a_forgotten_job(bench):
    bench.cluster.hold("Resources")
    job_id = bench.submit("true")
    bench.slurm("scancel", job_id)
    bench.wait("cancelled")
    bench.cluster.forget(job_id)
    bench.cluster.keep_accounts()
    assert bench.status()["state"] == "cancelled"


def test_a_controller_that_does_not_answer(bench):
    bench.submit("exit 4")
    bench.wait("failed")
    bench.cluster.go_down()
    assert bench.status()["state"] == "failed"
    (bench.run_dir() / "exit_code").unlink()
    assert "this is its last known state" in bench.launch.run("status").stderr
    forget_end(bench)
    done = bench.launch.run("status")
    assert done.returncode == 3
    assert done.stderr == ("error: scontrol: Unable to contact slurm controller (connect failure)\n"
                           "hint:  is the cluster up? ask it: scontrol ping\n")


@pytest.mark.parametrize(("profile", "fields", "words", "hint"), [
    ({"partition": "nowhere"}, {}, "Invalid partition name specified", "sinfo --summarize"),
    ({}, {"resources": {"nodes": 50}}, "Requested node configuration is not available", "lower `resources`"),
])
def test_refused(bench, profile, fields, words, hint):
    done = bench.launch.run("submit", bench.job("true", profile=profile, **fields))
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert hint in done.stderr.partition("hint:  ")[2]
    assert list((bench.launch.home / "runs").iterdir()) == []


def test_an_answer_that_is_lost_leaves_no_job(bench):
    """sbatch's time-out does not say whether the job was taken: it is looked for, and cancelled."""
    bench.cluster.lose_answers()
    done = bench.launch.run("submit", bench.job("sleep 600"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "Socket timed out" in done.stderr
    assert list((bench.launch.home / "runs").iterdir()) == []
    bench.until_queue_is_empty()


def test_a_run_that_a_killed_submit_did_not_note_is_found_in_the_queue(bench):
    bench.submit("echo up; trap 'exit 1' TERM; sleep 600 & wait")
    bench.until("[node 1] up")
    record = bench.run_dir() / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "place": {}, "handle": "unsent://x"}))
    assert bench.status()["state"] == "running"
    bench.launch.ok("cancel", "--yes")
    assert bench.status()["state"] == "cancelled"
    bench.until_queue_is_empty()


def test_a_job_of_the_same_name_from_another_home_is_left_alone(bench, tmp_path):
    job_id = bench.submit("sleep 600")
    run = bench.launch.json("list")[-1]["run"]
    home, bench.launch.home = bench.launch.home, tmp_path / "other"
    bench.cluster.lose_answers()
    assert bench.launch.run("submit", "job.yaml", "--run-id", run).returncode == 3
    queued = bench.slurm("squeue", "--noheader", "--format=%i")
    bench.launch.home = home
    bench.launch.ok("cancel", "--yes")
    assert queued.split()[0] == job_id


def test_no_slurm_here(bench):
    bench.launch.env["PATH"] = str(bench.launch.cwd)
    done = bench.launch.run("submit", bench.job("true"))
    assert done.returncode == 3
    assert done.stderr.endswith("error: sbatch: no such command on this machine\n"
                                "hint:  run launch on a login node of the cluster\n")


def test_dry_run_asks_nobody(bench):
    bench.cluster.go_down()
    printed = bench.launch.ok("submit", "--dry-run", bench.job("true"))
    assert printed == bench.launch.ok("render", "job.yaml")


def test_options_for_other_jobs_do_not_reach_this_one(bench):
    bench.launch.env.update(SBATCH_PARTITION="nowhere", SLURM_NTASKS="9", SRUN_DEBUG="7", OTHER="kept")
    bench.submit('echo "[${SBATCH_PARTITION:-}${SLURM_NTASKS:-}${SRUN_DEBUG:-}] $OTHER"')
    bench.wait("succeeded")
    assert "[node 0] [] kept" in bench.lines()


def test_secrets_go_by_a_private_file_alone(bench, tmp_path):
    value = "s3 'cr\"et' $x, y=z\nline"
    bench.launch.env["TOKEN"] = value
    show = "import os; print(os.environb[b'TOKEN'].hex())"
    bench.cluster.hold("Resources")
    bench.submit(f'python3 -c "{show}"', secrets=["TOKEN"])
    private = bench.run_dir() / "secrets.env"
    assert private.stat().st_mode & 0o777 == 0o600
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and b"'cr" in path.read_bytes()]
    assert holders == [private]
    bench.cluster.release()
    bench.wait("succeeded")
    assert f"[node 1] {value.encode().hex()}" in bench.lines()
    assert not private.exists()


def test_code_is_the_copy_of_the_submit(bench):
    code = bench.launch.cwd / "code"
    code.mkdir()
    (code / "words.py").write_text("TEXT = 'as submitted'\n")
    bench.cluster.hold("Resources")
    bench.submit('python3 -c "import words; print(words.TEXT)"', code="code")
    (code / "words.py").write_text("TEXT = 'changed later'\n")
    bench.cluster.release()
    bench.wait("succeeded")
    assert "[node 0] as submitted" in bench.lines()


def test_runs_in_the_folder_of_the_job_file(bench):
    bench.submit("pwd")
    bench.wait("succeeded")
    assert f"[node 0] {os.path.realpath(bench.launch.cwd)}" in bench.lines()
    assert json.loads((bench.run_dir() / "run.json").read_text())["place"] == {"job_id": "1"}
