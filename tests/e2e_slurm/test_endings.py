"""What ends a job on a real Slurm: its time limit, a lost node, a job of higher priority, too much memory. The limits
are real ones that `scontrol` has moved near."""

import os
import re
import signal
import time
from dataclasses import replace

import pytest
import yaml

from launcher.runs.store import RunStore
from tests import slurm_cluster
from tests.cli_runner import Launch
from tests.e2e_slurm.test_jobs import PATIENCE_S, slurm, submit, until, wait

# Jobs of `high` take the nodes of `low`'s, after GraceTime; a node whose slurmd is silent is soon given up.
EXTRA = """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=3
PartitionName=low Nodes=h[3-4] PriorityTier=1 GraceTime=4
PartitionName=high Nodes=h[3-4] PriorityTier=9 PreemptMode=OFF
"""
KNOBS = {"SLURM_UP_PREFIX": "h", "SLURM_UP_EXTRA": EXTRA}
# A loop, because Slurm signals one process after the other: `sleep` can be dead before its shell hears the signal.
SAVE = 'trap "echo saved; exit 75" TERM; echo "attempt ${SLURM_RESTART_COUNT:-0}"; ' \
       '[ -n "${SLURM_RESTART_COUNT:-}" ] || while true; do sleep 600 & wait; done'
ONE = {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "300Mi", "time_limit": "1m"}
WHOLE = {**ONE, "cpus_per_node": 8}


def laid_out(folder, environ):
    """A Launch with profiles for the partitions, in a folder of its own."""
    (folder / "work").mkdir(parents=True)
    launch = Launch(folder / "home", folder / "work", dict(environ))
    profiles = {name: {"backend": "slurm", "partition": name, "grace": "20s"} for name in ("main", "low", "high")}
    (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    return launch


@pytest.fixture(scope="module")
def harsh(tmp_path_factory):
    """The cluster; one of its nodes dies under a job while the other tests run. Returns its environment, and that
    job's Launch."""
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("harsh")
    try:
        environ = slurm_cluster.start(folder, **KNOBS)
        victim = laid_out(tmp_path_factory.mktemp("lost"), environ)
        submit(victim, SAVE, cluster="main", resources={**WHOLE, "nodes": 2, "time_limit": "10m"})
        until(victim, "[node 0] attempt 0", "[node 1] attempt 0")
        host = wait(victim, "running")["nodes"][0]["host"]
        os.kill(int((folder / f"run/slurmd.{host}.pid").read_text()), signal.SIGKILL)
        yield environ, victim
    finally:
        slurm_cluster.stop(folder)


@pytest.fixture
def hpc(harsh, tmp_path):
    """A Launch on that cluster."""
    return laid_out(tmp_path / "hpc", harsh[0])


def end_in(launch, job_id, seconds):
    """Move the end that the time limit gives to a running job."""
    slurm(launch, "scontrol", "update", f"jobid={job_id}", f"EndTime=now+{seconds}")


def goes_on(launch, job_id):
    """A requeued job, without Slurm's two minutes; returns how it ended."""
    deadline = time.monotonic() + PATIENCE_S
    expected = re.compile(r".* \(BeginTime\); expected to start at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
    while not expected.fullmatch((status := wait(launch, "pending"))["reason"]):  # it has none at first
        assert time.monotonic() < deadline, status
    slurm(launch, "scontrol", "update", f"jobid={job_id}", "starttime=now+5")
    return wait(launch, "succeeded", "failed")


@pytest.mark.needs("slurm")
def test_at_the_time_limit_the_obedient_go_on_for_free_and_the_deaf_have_failed(hpc, tmp_path):
    """Both at once, because Slurm looks at its clock every 30 s. The signal is Slurm's own: a quarter of the limit
    before the end, or up to half a minute earlier. srun gives up on a deaf task after a while, and then returns 0."""
    told_id = submit(hpc, SAVE, cluster="low", resources=ONE, restarts=0)
    deaf = replace(hpc, home=tmp_path / "other")
    deaf_id = submit(deaf, 'trap "" TERM; echo up; while true; do sleep 0.2; done', cluster="low", resources=ONE)
    until(hpc, "attempt 0")
    until(deaf, "up")
    end_in(hpc, told_id, 46)
    end_in(deaf, deaf_id, 2)
    status = goes_on(hpc, told_id)
    assert (status["state"], status["nodes"][0]["restarts"]) == ("succeeded", 1)
    assert {"saved", "attempt 1"} <= set(until(hpc))
    status = wait(deaf, "failed", "succeeded")
    assert (status["state"], status["reason"]) == ("failed", "it reached its time limit (TIMEOUT)")


@pytest.mark.needs("slurm")
def test_a_lost_node_puts_the_job_back_into_the_queue(harsh):
    """Second: by then Slurm has missed the node, and its two minutes are not over. What still runs on the node ends
    without a word."""
    launch = harsh[1]
    job_id = RunStore(launch.home).all()[-1].place["job_id"]
    status = goes_on(launch, job_id)
    assert (status["state"], [node["restarts"] for node in status["nodes"]]) == ("succeeded", [1, 1])
    assert "h1" not in [node["host"] for node in status["nodes"]]
    assert {"[node 0] attempt 1", "[node 1] attempt 1", "[node 1] saved"} <= set(until(launch))


@pytest.mark.needs("slurm")
def test_pre_empted_by_a_job_of_higher_priority_both_go_on_for_free(hpc, tmp_path):
    """The obedient saves and is requeued by its script. The deaf is killed and requeued by Slurm; the attempt that was
    killed leaves no exit code."""
    obedient_id = submit(hpc, SAVE, cluster="low", resources=WHOLE, restarts=0)
    deaf, high = replace(hpc, home=tmp_path / "deaf"), replace(hpc, home=tmp_path / "high")
    script = '[ -n "${SLURM_RESTART_COUNT:-}" ] || { trap "" TERM; echo up; while true; do sleep 0.2; done; }'
    deaf_id = submit(deaf, script, cluster="low", resources=WHOLE, restarts=0)
    until(hpc, "attempt 0")
    until(deaf, "up")
    submit(high, "true", cluster="high", resources={**WHOLE, "nodes": 2})
    for launch, job_id in ((hpc, obedient_id), (deaf, deaf_id)):
        status = goes_on(launch, job_id)
        assert (status["state"], status["nodes"][0]["restarts"]) == ("succeeded", 1)
    assert {"saved", "attempt 1"} <= set(until(hpc))
    assert wait(high, "succeeded", "failed")["state"] == "succeeded"


@pytest.mark.needs("slurm")
def test_too_much_memory_is_told_in_words(hpc):
    script = 'exec python3 -c "import time; x = bytearray(2**30); time.sleep(60)"'
    submit(hpc, script, cluster="low", resources=ONE)
    status = wait(hpc, "failed", "succeeded")
    words = "it used more memory than resources.memory_per_node (OUT_OF_MEMORY)"
    assert (status["state"], status["reason"]) == ("failed", words), hpc.ok("logs")
