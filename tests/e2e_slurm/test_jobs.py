"""Jobs on a real Slurm: followed, requeued, cancelled, failing; on the bare node and in a container."""

import os
import socket
import subprocess
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATIENCE_S = 120
SMALL = {"nodes": 2, "cpus_per_node": 1, "memory_per_node": "300Mi", "time_limit": "10m"}


def write_job(launch, script, *, cluster="bare", **fields):
    """A two-node job that runs a bash script on each node."""
    job = {"name": "e2e", "cluster": cluster, "resources": SMALL, "run": ["bash", "-c", script], **fields}
    (launch.cwd / "job.yaml").write_text(yaml.safe_dump(job))
    return "job.yaml"


def submit(launch, script, **fields):
    """Submit it; returns Slurm's number."""
    return launch.ok("submit", write_job(launch, script, **fields)).strip().rpartition("/")[2]


def wait(launch, *states):
    """Poll the latest run until it is in one of `states`."""
    deadline = time.monotonic() + PATIENCE_S
    while (status := launch.json("status")[0])["state"] not in states:
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.2)
    return status


def until(launch, *wanted):
    """Until these lines are in the latest run's log; returns the log."""
    deadline = time.monotonic() + PATIENCE_S
    while not set(wanted) <= set(lines := launch.ok("logs").splitlines()):
        assert time.monotonic() < deadline, f"no {wanted} in {lines}"
        time.sleep(0.2)
    return lines


def slurm(launch, *argv):
    """One of Slurm's commands."""
    done = subprocess.run(argv, env=launch.environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def containers(podman):
    """Names of the containers of launch that exist."""
    listed = subprocess.run(["podman", "ps", "--all", "--format={{.Names}}"], env={**os.environ, **podman},
                            capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if name.startswith("launch-e2e-")]


@pytest.mark.needs("slurm")
def test_two_nodes_followed_while_they_run(hpc):
    job_id = submit(hpc, 'echo "$NODE_RANK on $(hostname), master $MASTER_ADDR:$MASTER_PORT"; '
                         f'until [ -e {hpc.cwd}/go ]; do sleep 0.1; done; echo "$NODE_RANK last"')
    follower = hpc.start("logs", "-f")
    first = {follower.stdout.readline().strip() for _ in range(2)}
    port = 20000 + int(job_id) % 10000
    hosts = [node["host"] for node in wait(hpc, "running")["nodes"]]
    assert first == {f"[node {node}] {node} on {host}, master {hosts[0]}:{port}" for node, host in enumerate(hosts)}
    assert len(set(hosts)) == 2
    (hpc.cwd / "go").touch()
    assert sorted(follower.stdout) == ["[node 0] 0 last\n", "[node 1] 1 last\n"]
    assert follower.wait(PATIENCE_S) == 0
    status = wait(hpc, "succeeded")
    assert [(node["state"], node["exit_code"]) for node in status["nodes"]] == [("succeeded", 0)] * 2


@pytest.mark.needs("slurm")
def test_options_of_the_cluster_and_the_job(hpc):
    """The setup reaches every node; the options are Slurm's own."""
    (hpc.cwd / "activate").write_text('NOTHING=$NOT_SET; export VENV="a b"; unset NOTHING\n')
    job_id = submit(hpc, 'echo "$NODE_RANK has $VENV, $MORE"; sleep 1', resources={**SMALL, "nodes": 1}, sbatch={
        "setup": ["source ./activate", 'export MORE="$VENV too"'], "exclude": "n1", "exclusive": True,
        "partition": "main", "options": ["--nice=7", "--mail-user=some one"]})
    assert "0 has a b, a b too" in until(hpc, "0 has a b, a b too")
    shown = slurm(hpc, "scontrol", "show", "job", job_id)
    assert "Nice=7" in shown and "ExcNodeList=n1" in shown and "OverSubscribe=NO" in shown
    assert wait(hpc, "succeeded")["nodes"][0]["host"] != "n1"


@pytest.mark.needs("slurm")
def test_a_setup_that_fails_ends_the_run_and_says_which_line(hpc):
    submit(hpc, "echo never", sbatch={"setup": ["true", "source ./no-such-file"]})
    status = wait(hpc, "failed", "succeeded")
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["reason"] == "sbatch.setup failed: source ./no-such-file: exit code 1"
    log = hpc.ok("logs")
    assert "launch: sbatch.setup: exit code 1: source ./no-such-file" in log and "never" not in log


@pytest.mark.needs("slurm")
def test_told_to_stop_it_waits_in_the_queue_and_goes_on(hpc):
    """Node 1 takes longer to save: node 0, which has, does not end it."""
    script = 'trap "sleep $((3 * NODE_RANK)); echo saved; exit 75" TERM; echo "attempt ${SLURM_RESTART_COUNT:-0}"; ' \
             '[ -n "${SLURM_RESTART_COUNT:-}" ] || while true; do sleep 600 & wait; done'
    job_id = submit(hpc, script)
    until(hpc, "[node 0] attempt 0", "[node 1] attempt 0")
    slurm(hpc, "scancel", "--batch", "--signal=USR1", job_id)  # what Slurm does `grace` before the time limit
    deadline = time.monotonic() + PATIENCE_S
    expected = "(BeginTime); expected to start at "
    while expected not in (status := wait(hpc, "pending"))["reason"]:  # it has none at first
        assert time.monotonic() < deadline, status
    # instead of two minutes; nodes refuse a job that comes again at once
    slurm(hpc, "scontrol", "update", f"jobid={job_id}", "starttime=now+5")
    status = wait(hpc, "succeeded", "failed")
    assert (status["state"], [node["restarts"] for node in status["nodes"]]) == ("succeeded", [1, 1])
    assert {"[node 0] saved", "[node 1] saved", "[node 0] attempt 1", "[node 1] attempt 1"} <= set(until(hpc))


@pytest.mark.needs("slurm")
def test_what_cannot_run_waits_or_is_refused_with_slurms_words(hpc):
    done = hpc.run("submit", write_job(hpc, "true"), "--set", "resources.nodes=50")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Requested node configuration is not available" in done.stderr
    assert hpc.json("list") == []
    slurm(hpc, "scontrol", "update", "partitionname=main", "state=down")
    try:
        submit(hpc, "true")
        status = hpc.json("status")[0]
        assert status["state"] == "pending"
        hpc.ok("cancel", "--yes")
        assert hpc.json("status")[0]["state"] == "cancelled"
    finally:
        slurm(hpc, "scontrol", "update", "partitionname=main", "state=up")


@pytest.mark.needs("slurm")
@pytest.mark.parametrize(("section", "hint"), [
    ({"reservation": "nobody"}, "see the reservations: scontrol show reservation"),
    ({"licenses": "nothing:1"}, "see the licenses: scontrol show licenses"),
    ({"partition": "nowhere"}, "see the partitions: sinfo --summarize"),
    ({"gpu_type": "none"}, "set sbatch.gpu_type")])
def test_a_refusal_names_the_next_command(hpc, section, hint):
    resources = {"gpus_per_node": int("gpu_type" in section)}
    done = hpc.run("submit", write_job(hpc, "true", sbatch=section, resources=resources))
    assert (done.returncode, done.stdout) == (3, "")
    assert hint in done.stderr


TEXT = st.text(st.one_of(st.sampled_from("a,=;:'\"$`\\\n\t (){}[]<>|&!*?~#%-"),
                         st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=12)
UGLY = ["a,b=c 'd' \"e\" $HOME $(date) `date` \\ 上海\nnext\tline ", "\n", " ", "", "LAUNCH_END\n"]


def check_values(hpc, cluster, values, **fields):
    """One job shows what it finds in its environment and in its secrets; both nodes must show what was given."""
    names = [f"UGLY_{number}" for number in range(len(values))]
    hpc.env.update({f"SECRET_{name}": f"s{value}" for name, value in zip(names, values, strict=True)})
    show = "import os, sys; print(*(os.environb.get(n.encode(), b'absent').hex() for n in sys.argv[1:]), sep=',')"
    secrets = [f"SECRET_{name}" for name in names]
    job = {"name": "values", "cluster": cluster, "resources": SMALL, "run": ["python3", "-c", show, *names, *secrets],
           "env": dict(zip(names, values, strict=True)), "secrets": secrets, **fields}
    (hpc.cwd / "job.yaml").write_text(yaml.safe_dump(job))
    hpc.ok("submit", "job.yaml")
    assert wait(hpc, "succeeded", "failed")["state"] == "succeeded", hpc.ok("logs")
    line = ",".join(text.encode().hex() for text in [*values, *(f"s{value}" for value in values)])
    assert hpc.ok("logs").splitlines() == [f"[node 0] {line}", f"[node 1] {line}"]


@pytest.mark.needs("slurm")
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=20, max_size=20))
def test_values_arrive_as_written(hpc, values):
    check_values(hpc, "bare", [*UGLY, *values])


@pytest.mark.needs("slurm", "podman")
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(TEXT, min_size=20, max_size=20))
def test_values_arrive_as_written_in_a_container(hpc, podman, small_image, values):
    hpc.env.update(podman)
    check_values(hpc, "podman", [*UGLY, *values], image=small_image)


@pytest.mark.needs("slurm", "podman")
def test_in_a_container_without_rights(hpc, podman, image):
    hpc.env.update(podman)
    script = 'echo "$(id -u) $(touch /new 2>&1 | grep -o Read-only) $UGLY"; >/tmp/new; grep CapEff /proc/$$/status'
    submit(hpc, script, cluster="podman", image=image, env={"UGLY": "a, 'b' $c"})
    wait(hpc, "succeeded")
    assert hpc.ok("logs", "--node", "1").splitlines() == [
        "[node 1] 1000 Read-only a, 'b' $c", "[node 1] CapEff:\t0000000000000000"]  # fmt: skip
    assert containers(podman) == []


def until_gone(found):
    """Until nothing is found any more."""
    deadline = time.monotonic() + PATIENCE_S
    while left := found():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.needs("slurm", "podman")
@pytest.mark.parametrize("handler", ["echo saved; exit 75", ""], ids=["obedient", "deaf"])
def test_cancel_leaves_no_container(hpc, podman, small_image, handler):
    hpc.env.update(podman)
    submit(hpc, f"trap '{handler}' TERM; echo up; while true; do sleep 0.2; done", cluster="podman", image=small_image)
    until(hpc, "[node 0] up", "[node 1] up")
    assert len(containers(podman)) == 2
    assert hpc.json("prune") == []  # the run lives
    hpc.ok("cancel", "--yes")
    assert hpc.json("status")[0]["state"] == "cancelled"
    until_gone(lambda: containers(podman))
    assert hpc.run("cancel", "--yes").returncode == 0
    if handler:
        assert {"[node 0] saved", "[node 1] saved"} <= set(hpc.ok("logs").splitlines())


@pytest.mark.needs("slurm", "podman")
def test_scancel_by_hand_leaves_no_container(hpc, podman, small_image):
    hpc.env.update(podman)
    job_id = submit(hpc, "echo up; sleep 600", cluster="podman", image=small_image)
    until(hpc, "[node 0] up", "[node 1] up")
    slurm(hpc, "scancel", job_id)
    assert wait(hpc, "cancelled")["reason"] == "cancelled in Slurm (CANCELLED)"
    until_gone(lambda: containers(podman))


@pytest.mark.needs("slurm", "podman")
def test_cancel_while_the_image_is_pulled(hpc, podman):
    """From a registry that takes the connection and never answers."""
    hpc.env.update(podman)
    with socket.create_server(("127.0.0.1", 0)) as registry:
        image = f"127.0.0.1:{registry.getsockname()[1]}/team/slow:1"

        def pulls():
            listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
            return [line for line in listed.stdout.splitlines() if line == f"podman pull {image}"]

        submit(hpc, "true", cluster="podman", image=image)
        deadline = time.monotonic() + PATIENCE_S
        while not pulls():
            assert time.monotonic() < deadline, hpc.ok("logs")
            time.sleep(0.1)
        hpc.ok("cancel", "--yes")
        assert hpc.json("status")[0]["state"] == "cancelled"
        until_gone(pulls)
        assert containers(podman) == []


@pytest.mark.needs("slurm", "podman")
def test_prune_removes_the_container_of_an_ended_run(hpc, podman, small_image):
    hpc.env.update(podman)
    submit(hpc, "true")
    wait(hpc, "succeeded")
    run = hpc.json("list")[0]["run"]
    for name, folder in (("left", hpc.run_dir(run)), ("other", "/elsewhere")):
        slurm(hpc, "podman", "run", "--detach", f"--name=launch-{run}-{name}", f"--label=launch-run-dir={folder}",
              small_image, "sleep", "600")
    try:
        found = hpc.json("prune")
        assert [(orphan["kind"], orphan["name"]) for orphan in found] == [("container", f"launch-{run}-left")]
        hpc.ok("prune", "--yes")
        assert containers(podman) == [f"launch-{run}-other"]
    finally:
        slurm(hpc, "podman", "rm", "--force", "--ignore", f"launch-{run}-other", f"launch-{run}-left")
