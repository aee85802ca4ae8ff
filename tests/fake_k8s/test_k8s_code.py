"""A job's code in pods of the fake cluster: unpacked before the job starts, each pod's own, a failure explained."""

import dataclasses
import io
import tarfile

import pytest

from launcher.job.plan import Plan
from launcher.runs.status import State
from tests.jobs import rendered
from tests.k8s_runs import RUN_ID, plan_of, submit, texts, wait_state
from trainer.node.finish import mark_finished

TEAM = [{"path": "/workspace", "claim": "team"}]
TRAIN = {"model": {"path": "/m"}, "data": {"sources": [{"path": "/d"}]}, "settings": {"output_dir": "/workspace/out"}}


def with_code(plan: Plan, run_id: str = RUN_ID, **files: str) -> Plan:
    """The same plan with modules of these names and texts as its code."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{name}.py")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return dataclasses.replace(plan, run_id=run_id, code_archive=packed.getvalue(), code_digest="5eed")


def one_node(script: str, **fields: object) -> Plan:
    return plan_of(script, resources={"nodes": 1}, **fields)


@pytest.fixture
def volume(cluster):
    """The folder of the claim `team`, which every user may write to."""
    cluster.create("persistentvolumeclaims", {"metadata": {"name": "team"}, "spec": {}}, "default")
    folder = cluster.root / "volumes/team"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return folder


@pytest.mark.usefixtures("volume")
def test_two_runs_on_one_volume_have_each_its_own_code(backend, cluster):
    """Both look only after both have been unpacked."""
    cluster.enforce_restricted("default")
    script = "touch {0}; until [ -e {1} ]; do sleep 0.05; done; python3 -c 'import who; print(who.NAME)'; ls"
    runs = [submit(backend, with_code(one_node(script.format(me, other), mounts=TEAM), f"run-{me}",
                                      who=f"NAME = {me!r}")) for me, other in ("ab", "ba")]
    for run, me in zip(runs, "ab", strict=True):
        wait_state(backend, run, State.SUCCEEDED)
        assert texts(backend, run) == {0: [me, "a", "b"]}


def test_relative_paths_lead_to_a_copy_that_the_job_may_write_to(backend):
    script = "echo NAME = 0 >who.py; touch /opt/code/x 2>/dev/null || echo read-only; cd /; python3 -c " \
             "'import who; print(who.NAME, who.__file__)'"
    run = submit(backend, with_code(one_node(script), who="NAME = 1"))
    wait_state(backend, run, State.SUCCEEDED)
    assert texts(backend, run) == {0: ["read-only", "1 /opt/code/who.py"]}


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_code_that_cannot_be_unpacked_fails_the_run_and_says_why(backend, cluster, kind):
    """It counts as a failure: tried again as often as asked, and no more."""
    cluster.absent_groups = frozenset()
    plan = one_node("echo never", restarts=1, profile={"kubernetes_kind": kind})
    run = submit(backend, dataclasses.replace(plan, code_archive=b"no archive", code_digest="5eed"))
    status = wait_state(backend, run, State.FAILED)
    assert status.exit_code == 2
    assert status.reason.startswith("node 0: its code could not be unpacked (the image needs sh, tar and gzip): exit "
                                    "code 2: ")
    assert [node.restarts for node in status.nodes] == [1]
    lines = texts(backend, run)[0]
    assert "gzip: stdin: not in gzip format" in lines and "never" not in lines


def test_a_quota_that_wants_limits_takes_the_pod(backend, cluster):
    """It wants them of init containers too, and counts the larger of both."""
    hard = {"limits.cpu": "2", "limits.memory": "1Gi", "requests.nvidia.com/gpu": "0"}
    cluster.create("resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}}, "default")
    resources = {"nodes": 1, "cpus_per_node": 2, "memory_per_node": "1Gi"}
    plan = with_code(plan_of("python3 -c 'import who'", resources=resources), who="")
    backend.check(rendered(plan))
    wait_state(backend, submit(backend, plan), State.SUCCEEDED)


def test_modules_on_a_shared_volume_are_not_taken_for_the_trainers(backend, volume):
    """The working directory of a training job, where other runs write."""
    (volume / "out").mkdir()
    mark_finished(volume / "out", {"LAUNCH_RUN_ID": RUN_ID})  # so that there is nothing to train
    for name in ("socket", "yaml", "trainer"):
        (volume / f"{name}.py").write_text("raise SystemExit('somebody else')")
    plan = plan_of(run=None, train=TRAIN, mounts=TEAM, resources={"nodes": 1})
    run = submit(backend, with_code(plan, who=""))
    wait_state(backend, run, State.SUCCEEDED)
    assert "the results of this run are written already" in texts(backend, run)[0][0]
