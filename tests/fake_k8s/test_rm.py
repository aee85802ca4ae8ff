"""launch rm and launch prune --older-than: runs that have ended go with all that launch keeps of them."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from launcher.backends.local.backend import LocalBackend
from launcher.errors import BackendError
from launcher.runs.record import End
from launcher.runs.status import State
from launcher.services.ends import status_of
from launcher.services.retention import remove_run
from tests.cli_runner import Launch
from tests.contract.sites import local_at
from tests.k8s_runs import IDLE, RUN_ID, asking, objects_in, plan_of, submit, wait_for, wait_state
from tests.records import a_run


@pytest.fixture
def site(launch):
    return local_at(launch)


@pytest.fixture
def command(cluster, store, tmp_path):
    """The real command, on the runs of the test."""
    return Launch(home=store.root.parent, cwd=tmp_path, env={"KUBECONFIG": str(cluster.kubeconfig)})


def record_of(launch, run_id):
    return json.loads((launch.run_dir(run_id) / "run.json").read_text())


def test_an_ended_run_goes_with_its_code_and_keeps_its_output(site):
    (site.launch.cwd / "code").mkdir()
    (site.launch.cwd / "code/a.py").write_text("x = 1\n")
    run_id = site.submit("mkdir -p outputs; touch outputs/weights", code="code")
    site.wait(run_id, "succeeded")
    asked = site.launch.run("rm", run_id)
    assert asked.returncode == 2 and asked.stderr.endswith(f"hint:  launch rm --yes {run_id}\n")
    assert site.launch.run_dir(run_id).exists()
    site.launch.ok("rm", "--yes", run_id)
    assert site.launch.json("list") == []
    assert [path.name for path in (site.launch.home / "code").iterdir()] == ["lock"]
    assert (site.launch.cwd / "outputs/weights").exists()


def test_one_that_goes_on_or_is_unknown_keeps_all_of_them(site):
    done = site.submit("true")
    site.wait(done, "succeeded")
    gate, go = site.gate()
    going = site.submit(gate)
    refused = site.launch.run("rm", "--yes", done, going, "nothing")
    assert refused.returncode == 3
    assert f"{going} has not ended: it is running\n" in refused.stderr and "no run 'nothing'" in refused.stderr
    assert f"launch cancel {going}" in refused.stderr
    assert {run["run"] for run in site.launch.json("list")} == {done, going}
    unknown = site.launch.run("rm", "--yes", "nothing")
    assert unknown.returncode == 4
    go.touch()
    site.wait(going, "succeeded")


def test_the_job_of_a_run_goes_with_all_that_it_owns(backend, cluster, store, command):
    run = submit(backend, plan_of("true", secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_state(backend, run, State.SUCCEEDED)
    command.ok("rm", "--yes", RUN_ID)
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    assert not store.folder(RUN_ID).exists()


def test_the_job_of_somebody_else_under_the_same_name_stays(backend, cluster, store, monkeypatch):
    run = submit(backend, plan_of("true"))
    wait_state(backend, run, State.SUCCEEDED)
    store.save(dataclasses.replace(run, place={**run.place, "uid": "an older one"}))
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    remove_run(store, backend, store.find(RUN_ID))
    assert asking(cluster).get("Job", "default", RUN_ID)


def test_a_cluster_that_does_not_answer_keeps_the_record(backend, cluster, store, monkeypatch):
    run = submit(backend, plan_of("true"))
    wait_state(backend, run, State.SUCCEEDED)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    cluster.fail_once(403, f"/jobs/{RUN_ID}$")
    with pytest.raises(BackendError):
        remove_run(store, backend, run)
    assert store.find(RUN_ID) == run


def secrets_in(cluster):
    return sorted(name for name in objects_in(cluster) if name.startswith("Secret/"))


def test_the_secret_goes_when_the_end_is_first_seen(backend, cluster, store):
    other = {"metadata": {"name": "team"}, "stringData": {"A": "b"}}
    cluster.create("secrets", other, "default")
    run = submit(backend, plan_of(IDLE, secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_state(backend, run, State.RUNNING)
    status_of(backend, store, run)
    assert secrets_in(cluster) == [f"Secret/{RUN_ID}", "Secret/team"]
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Foreground")
    wait_for(lambda: objects_in(cluster), lambda found: found == ["Secret/team"], "nothing else")
    store.forget(RUN_ID)
    run = submit(backend, plan_of("true", secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_state(backend, run, State.SUCCEEDED)
    assert status_of(backend, store, run).state is State.SUCCEEDED
    assert secrets_in(cluster) == ["Secret/team"]
    assert store.find(RUN_ID).end.state is State.SUCCEEDED


def test_who_may_not_delete_secrets_is_told_when_they_go(backend, cluster, store, capsys):
    run = submit(backend, plan_of("true", secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_state(backend, run, State.SUCCEEDED)
    cluster.fail_once(403, f"/secrets/{RUN_ID}$")
    assert status_of(backend, store, run).state is State.SUCCEEDED
    assert f"Secret '{RUN_ID}' stays until its Job goes, a week after the end" in capsys.readouterr().err


def test_an_end_outlives_its_job(backend, cluster, store):
    run = submit(backend, plan_of("exit 3"))
    wait_state(backend, run, State.FAILED)
    seen = status_of(backend, store, run)
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Background")
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    later = status_of(backend, store, store.find(RUN_ID))
    assert (later.state, later.reason, later.exit_code) == (State.FAILED, seen.reason, 3)


def test_a_job_that_went_unseen_can_be_removed(backend, cluster, store, command):
    run = submit(backend, plan_of("true"))
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Background")
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    assert status_of(backend, store, run).state is State.UNKNOWN
    assert store.find(RUN_ID).end.state is State.UNKNOWN
    command.ok("rm", "--yes", RUN_ID)
    assert store.all() == []


def test_runs_that_ended_long_ago_are_pruned(site):
    store_runs = [site.submit("true"), site.submit("true")]
    for run_id in store_runs:
        site.wait(run_id, "succeeded")
    old, young = store_runs
    long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    record = record_of(site.launch, old)
    record["created"] = record["end"]["at"] = long_ago
    (site.launch.run_dir(old) / "run.json").write_text(json.dumps(record))
    assert site.launch.json("prune") == []
    listed = site.launch.json("prune", "--older-than", "30d")
    assert [(orphan["kind"], orphan["name"], orphan["why"]) for orphan in listed] == [
        ("run", old, "it ended 40 d ago: succeeded")]
    site.launch.ok("prune", "--older-than", "30d", "--yes")
    assert [run["run"] for run in site.launch.json("list")] == [young]
    for wrong in ("30", "9999999d"):
        assert site.launch.run("prune", "--older-than", wrong).returncode == 2


def test_an_end_is_written_once_and_not_over_an_unfinished_record(store):
    for run_id, handle in (("a", "local://a"), ("b", "unsent://b")):
        store.claim(run_id)
        store.save(a_run(run_id, handle=handle))
    first, second = (End(State.FAILED, why, 3, "2026-01-02T00:00:00+00:00") for why in ("one", "two"))
    lost = End(State.UNKNOWN, "gone", None, "2026-01-02T00:00:00+00:00")
    written = [store.note_end(a_run("a"), end) for end in (lost, lost, first, second, lost)]
    assert written == [True, False, True, False, False]
    assert store.find("a").end == first
    assert not store.note_end(a_run("b"), first) and store.find("b").end is None


def test_the_secrets_of_a_submit_that_goes_on_are_left_alone(store):
    """Between its record and its start a run looks like one that was killed."""
    run = a_run(handle="unsent://a")
    store.claim("a")
    store.save(run)
    secrets = store.folder("a") / "secrets.env"
    secrets.touch()
    assert status_of(LocalBackend(store, {}), store, run).state is State.FAILED
    assert secrets.exists()
