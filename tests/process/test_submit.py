"""Submitting, and every way in which it can be cut short: what launcher/services/submit.py's table promises.

The real steps run, on this machine and against the fake API server over HTTP. An interrupt comes at the N-th call of a
launcher function, for many N, so that no step is left out because nobody thought of it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.backends.local.backend import LocalBackend
from launcher.errors import BackendError, LaunchError
from launcher.runs.store import RunStore
from launcher.services.prepare import Request, prepare
from launcher.services.submit import submit_run
from tests.cli_runner import Launch
from tests.contract.sites import kubernetes_objects_of, processes_of
from tests.fakes.kubernetes import FakeCluster
from tests.proxy import CuttingProxy

ROOT = Path(__file__).parents[2]
LAUNCHER = str(ROOT / "launcher")
PATIENCE_S = 60
WAIT = "trap 'exit 143' TERM; sleep 600 & wait"
CLUSTERS = {"here": {"backend": "local", "grace": "1s"}, "fake": {"backend": "kubernetes", "grace": "1s"}}
# Submits the job of the working folder, and sends itself a signal at the N-th call that `submit_run` makes.
CUT_SHORT = """\
import os, sys
import launcher.backends.kubernetes.backend, launcher.backends.local.backend  # imports are calls, too
import launcher.commands.submit
from launcher.cli import main
launcher, stop_at, number, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 0
def count(frame, event, _):
    global calls
    if event == "call" and (calls or frame.f_code.co_name == "submit_run"):
        calls += frame.f_code.co_filename.startswith(launcher)
    if calls == stop_at:
        sys.setprofile(None)
        os.kill(os.getpid(), number)
sys.setprofile(count)
main(["submit", "job.yaml"])
"""


class Place:
    """A back end, a job for it, and what a submit has left there."""

    def __init__(self, launch: Launch, cluster: str, things):
        self.launch, self.things = launch, things
        self.store = RunStore(launch.home)
        (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(CLUSTERS))
        (launch.cwd / "code").mkdir(exist_ok=True)
        (launch.cwd / "code/a.py").write_text("x = 1\n")
        job = {"name": "cut", "cluster": cluster, "run": ["bash", "-c", WAIT], "code": "code", "secrets": ["CUT_VALUE"]}
        (launch.cwd / "job.yaml").write_text(yaml.safe_dump(job))
        self.launch.env["CUT_VALUE"] = "s3cr3t"
        self.run_id = self.prepared().base_id

    def prepared(self):
        """The job, read in this process."""
        return prepare(Request(self.launch.cwd / "job.yaml", clusters=self.launch.cwd / "clusters.yaml"), {})

    def backend(self):
        """The back end in this process."""
        kind = LocalBackend if self.prepared().profile.backend == "local" else KubernetesBackend
        return kind(self.store, self.launch.environ())

    def submit(self, **more):
        """A submit in this process."""
        return submit_run(self.prepared(), self.backend(), self.store, self.launch.environ(), **more)

    def left(self):
        """Objects or processes of the run, and of a second one."""
        return [thing for run_id in (self.run_id, f"{self.run_id}-2") for thing in self.things({"run": run_id})]

    def folders(self):
        """Names of run folders."""
        return sorted(os.listdir(self.store.root)) if self.store.root.exists() else []

    def until_nothing_is_left(self):
        """Ends are not instant."""
        deadline = time.monotonic() + PATIENCE_S
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@pytest.fixture
def local(launch):
    place = Place(launch, "here", processes_of)
    yield place
    for run in place.store.all():
        place.backend().cancel(run)


@pytest.fixture
def cluster(tmp_path):
    with FakeCluster(tmp_path / "cluster") as cluster:
        cluster.run_as_user = False
        yield cluster


@pytest.fixture
def kubernetes(launch, cluster):
    launch.env["KUBECONFIG"] = str(cluster.kubeconfig)
    return Place(launch, "fake", kubernetes_objects_of(cluster))


@pytest.fixture(params=["local", "kubernetes"])
def place(request):
    return request.getfixturevalue(request.param)


class AtCall:
    """Counts the calls of launcher functions from `submit_run` on, and sends this process SIGINT at some of them."""

    def __init__(self, *numbers):
        self.numbers, self.calls = numbers, 0

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, _arg):
        is_ours = frame.f_code.co_filename.startswith(LAUNCHER)
        if event == "call" and is_ours and (self.calls or frame.f_code.co_name == "submit_run"):
            self.calls += 1
            if self.calls in self.numbers:
                signal.raise_signal(signal.SIGINT)


def calls_of_a_submit(place):
    """How many there are."""
    with AtCall() as counter:
        run = place.submit()
    place.backend().cancel(run)
    place.store.forget(run.run_id)
    place.until_nothing_is_left()
    return counter.calls


def test_an_interrupt_at_any_step_leaves_nothing_or_a_run(place):
    """And most of them leave nothing: only after the last answer is it too late."""
    total = calls_of_a_submit(place)
    clean = late = 0
    for number in range(1, total + 1, max(1, total // 20)):
        with pytest.raises(KeyboardInterrupt), AtCall(number):
            place.submit()
        runs = place.store.all()
        if runs:
            late += 1
            assert number > 0.8 * total
            assert [run.handle.startswith("unsent:") for run in runs] == [False]
            place.backend().cancel(runs[0])
            place.store.forget(runs[0].run_id)
        else:
            clean += 1
        place.until_nothing_is_left()
        assert place.folders() == []
    assert clean > 15
    assert late < 3


def test_two_interrupts_leave_nothing_or_a_record_that_removes_it(place):
    total = calls_of_a_submit(place)
    for number in range(total // 2, total + 1, max(1, total // 12)):
        with pytest.raises(KeyboardInterrupt), AtCall(number, number + 1, number + 2):
            place.submit()
        for run in place.store.all():
            place.backend().cancel(run)
            place.store.forget(run.run_id)
        place.until_nothing_is_left()
        for name in place.folders():  # an interrupted clean-up; `launch prune` removes it
            assert not (place.store.root / name / "run.json").exists()
            place.store.forget(name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_submit_ends_with_130_and_leaves_nothing(local, number):
    total = calls_of_a_submit(local)
    done = cut_short(local, total // 2, number)
    assert (done.returncode, done.stdout) == (130, "")
    assert local.folders() == local.left() == []


def cut_short(place, stop_at, number):
    """`launch submit` in a process of its own, which gets a signal at this call."""
    return subprocess.run([sys.executable, "-c", CUT_SHORT, LAUNCHER, str(stop_at), str(int(number))],
                          cwd=place.launch.cwd, env={**place.launch.environ(), "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_killed_submit_leaves_nothing_that_launch_cannot_find(place):
    total = calls_of_a_submit(place)
    recorded = 0  # from the moment before it is sent
    for stop_at in (total // 3, *range(4 * total // 5, total, max(1, total // 16))):
        cut_short(place, stop_at, signal.SIGKILL)
        listed = place.launch.json("list")
        if not listed:
            assert place.left() == []
            for name in place.folders():
                assert not (place.store.root / name / "run.json").exists()  # what prune calls half sent
                place.store.forget(name)
            continue
        recorded += 1
        run_id = listed[0]["run"]
        if place.things is processes_of:  # it may not have come as far as to know its own id
            deadline = time.monotonic() + 1
            while not place.left() and time.monotonic() < deadline:
                time.sleep(0.05)
        place.launch.ok("cancel", run_id)
        place.until_nothing_is_left()
        place.store.forget(run_id)
    assert recorded


def test_the_same_job_by_twenty_processes_is_twenty_runs(local):
    (local.launch.cwd / "job.yaml").write_text("name: many\nrun: ['true']\n")
    started = [local.launch.start("submit", "job.yaml") for _ in range(20)]
    handles = {process.communicate(timeout=PATIENCE_S)[0].strip() for process in started}
    base = local.prepared().base_id
    assert handles == {f"local://{base}", *(f"local://{base}-{n}" for n in range(2, 21))}
    assert {run["handle"] for run in local.launch.json("list")} == handles


def test_two_users_at_once_in_one_namespace(kubernetes, cluster):
    """Each on a machine of its own: neither knows of the other's runs."""
    homes = [kubernetes.launch.home, kubernetes.launch.home.with_name("other")]
    people = [Launch(home, kubernetes.launch.cwd, kubernetes.launch.env) for home in homes]
    started = [person.start("submit", "job.yaml") for person in people * 2]
    ends = [(*process.communicate(timeout=PATIENCE_S), process.returncode) for process in started]
    assert [end for end in ends if end[2]] == []
    base = kubernetes.run_id
    assert {out.strip().rpartition("/")[2] for out, _, _ in ends} == {base, f"{base}-2", f"{base}-3", f"{base}-4"}
    assert [len(person.json("list")) for person in people] == [2, 2]


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_connection_that_is_lost_at_any_request(kubernetes, cluster, lost):
    """The run is sent whole, or nothing of it stays and the error says so."""
    told = []
    with CuttingProxy(cluster.url) as proxy:
        config = cluster.kubeconfig.with_name("through-proxy")
        config.write_text(cluster.kubeconfig.read_text().replace(cluster.url, proxy.url))
        kubernetes.launch.env["KUBECONFIG"] = str(config)
        run = kubernetes.submit()
        total = proxy.seen
        kubernetes.backend().cancel(run)
        kubernetes.store.forget(run.run_id)
        assert total > 6
        for number in range(1, total + 1):
            proxy.cut(number, lost)
            try:
                run = kubernetes.submit()
            except BackendError as error:
                told.append(error.message)
            else:
                kubernetes.backend().cancel(run)
                kubernetes.store.forget(run.run_id)
            kubernetes.until_nothing_is_left()
            assert kubernetes.folders() == []
    assert [line for line in told if "cannot be reached" not in line] == []


def test_a_cluster_that_stays_away_is_told_with_what_may_be_left(kubernetes, cluster):
    class LostBehindTheJob(KubernetesBackend):
        def submit(self, rendered, submission):
            cluster.faults.fail_once(500, "/services$")
            self.environ["X"] = ""
            original = cluster.faults.check

            def check(path):
                try:
                    original(path)
                except Exception:
                    cluster.go_away(3600)
                    raise

            cluster.faults.check = check
            return super().submit(rendered, submission)

    backend = LostBehindTheJob(kubernetes.store, kubernetes.launch.environ())
    with pytest.raises(BackendError) as error:
        submit_run(kubernetes.prepared(), backend, kubernetes.store, kubernetes.launch.environ())
    assert f"delete Job/{kubernetes.run_id}" in error.value.hint
    cluster.go_away(0)


def test_a_disk_that_is_full_before_anything_is_sent(local):
    """The limit of a process on file sizes stands for it: the system refuses the write all the same."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); " \
              "from launcher.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-B", "-c", limited, "submit", "job.yaml"], cwd=local.launch.cwd, text=True,
                          env={**local.launch.environ(), "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "render.sh: cannot be written: File too large" in done.stderr
    assert local.folders() == local.left() == []


def test_a_record_that_cannot_be_completed_takes_the_run_back(place):
    """The disk may fill up between the two."""
    kind = type(place.backend())

    class FullDisk(kind):
        def submit(self, rendered, submission):
            run = super().submit(rendered, submission)
            record = submission.run_dir / "run.json"
            record.unlink()
            (record / "in the way").mkdir(parents=True)
            return run

    with pytest.raises(LaunchError, match=r"run\.json: cannot be written: "):
        submit_run(place.prepared(), FullDisk(place.store, place.launch.environ()), place.store, place.launch.environ())
    place.until_nothing_is_left()
    assert place.folders() == []


def test_a_home_that_cannot_be_written(local):
    local.launch.home = local.launch.cwd / "job.yaml"
    done = local.launch.run("submit", "job.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("hint:  name a folder of your own: export LAUNCH_HOME=FOLDER\n")


def test_a_damaged_record_is_told_by_every_command(local):
    run = local.submit()
    while not (local.store.folder(run.run_id) / "attempts/0/0.pid").exists():
        time.sleep(0.05)  # a script that is told before its first node has no node to tell
    local.backend().cancel(run)
    path = local.store.folder(run.run_id) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "nodes": "two"}))
    for verb in ("status", "logs", "cancel"):
        done = local.launch.run(verb, run.run_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{run.run_id}/run.json: is not of this run, or of another version of launch" in done.stderr
    done = local.launch.run("list")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stderr.startswith("warning: ")


def test_a_large_snapshot_is_said(local):
    (local.launch.cwd / "code/big.bin").write_bytes(bytes(11 << 20))
    told = []
    local.submit(tell=told.append)
    assert told[0].startswith("code: 11.0 MiB in 2 files")
