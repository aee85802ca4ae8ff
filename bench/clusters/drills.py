"""Twenty drills: preemptions, killed ranks and lost nodes, at moments drawn from a printed seed, on a real Slurm and
on the fake Kubernetes, with real trainer processes on two nodes each, some side by side.

`drills.py [SEED] [COUNT]`. Prints a row a drill, and as its last line one JSON object; ends with 1 when one failed.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


from launcher.backends.base import Backend, InjectsFaults  # noqa: E402
from launcher.backends.registry import load_backend  # noqa: E402
from launcher.errors import LaunchError  # noqa: E402
from launcher.kinds.train.drill import Kind, drill_overrides, plan_drill  # noqa: E402
from launcher.kinds.train.drill_check import check_record, steps_lost  # noqa: E402
from launcher.kinds.train.drill_record import Record  # noqa: E402
from launcher.logs.line import LogQuery  # noqa: E402
from launcher.runs.record import Run  # noqa: E402
from launcher.runs.store import RunStore  # noqa: E402
from launcher.services.drill import Timeline, run_drill  # noqa: E402
from launcher.services.prepare import Request, prepare  # noqa: E402
from launcher.services.submit import submit_run  # noqa: E402
from launcher.terminal import ui  # noqa: E402
from tests import slurm_cluster  # noqa: E402
from tests.fakes.kubernetes import FakeCluster  # noqa: E402

DRILLS, AT_ONCE, SLURM_AT_ONCE = 20, 3, 2  # the throw-away Slurm has four nodes
QUICKSTART = ROOT / "examples/quickstart"
TINY = ("train.optimizer.max_steps=3", "train.model.shape.hidden_size=64", "train.model.shape.intermediate_size=128",
        "train.model.shape.num_layers=2", "train.model.shape.num_heads=2", "train.model.shape.num_kv_heads=2",
        "train.runtime.sample_prompts=[]", "code=null")
JOB = ("resources.nodes=2", "resources.cpus_per_node=8", "resources.memory_per_node=3Gi", "code=null",
       "env.OMP_NUM_THREADS=1", "train.runtime.save_every=4", "train.optimizer.max_steps=16",
       "train.optimizer.batch_size=2", "train.model.quantization=none")
BUILT_OPS = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
NODE_LOSS = "node loss"


@dataclass(frozen=True)
class Case:
    """One drill."""

    number: int
    backend: str
    fault: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of it; `wrong` is empty when every check was met."""

    case: Case
    step: int
    recovered_s: float | None
    lost: int
    wrong: str
    took_s: float


def main() -> int:
    """All drills; a table in their order, and one JSON line."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else DRILLS
    print(f"seed {seed}; {count} drills, {AT_ONCE} at once", flush=True)
    reason = slurm_cluster.missing()
    if reason:
        print(f"no real Slurm here: {reason}", file=sys.stderr)
        return 1
    began = time.monotonic()
    # a pod has a /tmp of its own, so what pods and this machine share must lie elsewhere
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="drills-") as name:
        results = run_cases(draw_cases(seed, count), Path(name))
    passed = sum(not result.wrong for result in results)
    report(results)
    print(json.dumps({"drills": len(results), "drills_passed": passed, "drills_seed": seed,
                      "drills_took_s": round(time.monotonic() - began)}))
    return 0 if passed == len(results) else 1


def draw_cases(seed: int, count: int) -> list[Case]:
    """Back ends and faults in turn, so that each pair comes about as often; the moments are the seed's."""
    dice = random.Random(seed)
    faults = ("preempt", "kill-rank", NODE_LOSS)
    return [Case(number, ("slurm", "kubernetes")[number % 2], faults[number // 2 % 3], dice.randrange(2**31))
            for number in range(count)]


def run_cases(cases: list[Case], folder: Path) -> list[Result]:
    """Side by side, as many as there are places for."""
    make_base(folder / "base")
    with slurm(folder / "slurm") as lanes, ThreadPoolExecutor(AT_ONCE) as pool:
        sites = {"slurm": lanes, "kubernetes": kubernetes}

        def carry_out(case: Case) -> Result:
            with sites[case.backend](folder / str(case.number)) as site:
                result = drill(case, site, folder)
            print(row_of(result), flush=True)
            return result

        return list(pool.map(carry_out, cases))


@dataclass(frozen=True)
class Site:
    """Where a drill runs. `lose` ends a machine without a word, `replace` is what a person does about it."""

    environ: Mapping[str, str]
    lose: Callable[[Run, Backend, int], None]
    replace: Callable[[Run, Backend], None]
    settings: tuple[str, ...] = ()


class NodeLoss(InjectsFaults):
    """A fault that takes the whole machine of a rank."""

    def __init__(self, site: Site, target: Backend, usual: InjectsFaults) -> None:
        self.site, self.target, self.usual = site, target, usual

    def preempt(self, run: Run, node: int) -> None:
        """The machine is gone."""
        self.site.lose(run, self.target, node)

    def kill_rank(self, run: Run, rank: int) -> None:
        """The machine of that rank is gone."""
        self.preempt(run, rank // run.processes_per_node)

    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """Somebody sees to the machine, and then as after any other fault."""
        self.site.replace(run, self.target)
        self.usual.skip_wait(run, ended)


def drill(case: Case, site: Site, folder: Path) -> Result:
    """One drill from the job file to its result."""
    began = time.monotonic()
    work = folder / f"work-{case.number}"
    shutil.copytree(folder / "base", work)
    (work / "clusters.yaml").write_text(yaml.safe_dump({"place": {
        "backend": case.backend, "grace": "20s", "python": sys.executable,
        "mounts": [{"path": str(folder), "host_path": str(folder)}]}}))
    kind: Kind = "preempt" if case.fault == "preempt" else "kill-rank"
    request = Request(work / "job.yaml", (*JOB, *site.settings, "cluster=place", f"name=drill-{case.number}",
                                          f"train.model.path={work}/outputs/base/model",
                                          f"train.settings.output_dir={work}/outputs/drill",
                                          f"train.data.sources.0.path={work}/facts.jsonl"), work / "clusters.yaml")
    given = prepare(request, site.environ)
    own = drill_overrides(kind, given.job, given.profile.mounts, request.overrides)
    prepared = prepare(Request(request.path, own, request.clusters), site.environ)
    plan = plan_drill(kind, prepared.job, prepared.plan(), seed=case.seed)
    store = RunStore(folder / "home")
    target = load_backend(prepared.profile.backend, store, dict(site.environ))
    run = submit_run(prepared, target, store, site.environ)
    assert isinstance(target, InjectsFaults)
    faults: InjectsFaults = NodeLoss(site, target, target) if case.fault == NODE_LOSS else target
    try:
        timeline = run_drill(plan, target, run, faults)
        checks = check_record(timeline.record, plan.expected, state=target.status(run).state)
        wrong = "; ".join(f"{check.name}: {check.seen}" for check in checks if not check.ok)
    except LaunchError as error:
        target.cancel(run)
        timeline, wrong = Timeline(Record(), None), error.message
    if wrong:
        show_log(target, run)
    return Result(case, plan.moment.step, timeline.recovered_s, steps_lost(timeline.record), wrong,
                  time.monotonic() - began)


def show_log(target: Backend, run: Run) -> None:
    """What a failed drill's job said last."""
    for batch in target.logs(run, LogQuery(tail=20)):
        for line in batch:
            print(f"  {run.run_id} [node {line.node}] {line.text}", file=sys.stderr)


def make_base(folder: Path) -> None:
    """The quickstart with the smallest base that trains, made once on this machine."""
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("outputs"))
    words = [word for setting in TINY for word in ("--set", setting)]
    made = subprocess.run([sys.executable, "-m", "launcher.cli", "local", "base.yaml", *words], cwd=folder, text=True,
                          capture_output=True, check=False,
                          env={**os.environ, "LAUNCH_HOME": str(folder.parent / "home"), "PYTHONPATH": str(ROOT)})
    if made.returncode:
        raise SystemExit(f"the base could not be made:\n{made.stderr}")


def free_port() -> int:
    """A port at which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def kubernetes(folder: Path) -> Iterator[Site]:
    """A cluster of its own: three machines, one of which may be lost."""
    with FakeCluster(folder) as cluster:
        cluster.shared_paths += [folder.parent, BUILT_OPS]
        cluster.run_as_user = False
        cluster.backoff_s = 10  # as the real Job controller
        cluster.image_env |= {"PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(BUILT_OPS)}

        def lose(run: Run, target: Backend, node: int) -> None:
            host = next(found.host for found in target.status(run).nodes if found.node == node)
            cluster.lose_node(str(host))

        def replace(run: Run, target: Backend) -> None:
            """What `launch repair` does."""
            deadline = time.monotonic() + 60
            while not (lost := target.lost(run)) and time.monotonic() < deadline:
                time.sleep(0.2)
            target.repair(run, lost)

        # the pods of all drills share this machine's addresses
        yield Site({**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}, lose, replace,
                   (f"env.MASTER_PORT={free_port()}",))


@contextmanager
def slurm(folder: Path) -> Iterator[Callable[[Path], Any]]:
    """One cluster for all drills; gives what a drill waits for two free nodes with."""
    os.environ["SLURM_UP_EXTRA"] = "SlurmdTimeout=5"
    variables = slurm_cluster.start(folder)
    places, starting = threading.Semaphore(SLURM_AT_ONCE), threading.Lock()

    def lose(run: Run, target: Backend, node: int) -> None:
        host = next(found.host for found in target.status(run).nodes if found.node == node)
        kill_machine(int((folder / f"run/slurmd.{host}.pid").read_text()))

    def replace(run: Run, target: Backend) -> None:
        """The machine is back once Slurm has noticed, so that there are four nodes again."""
        deadline = time.monotonic() + 120
        while target.status(run).state == "running" and time.monotonic() < deadline:
            time.sleep(0.5)
        with starting:
            slurm_cluster.start(folder)

    @contextmanager
    def lane(own: Path) -> Iterator[Site]:
        with places:
            yield Site({**os.environ, **variables, "PYTHONPATH": str(ROOT)}, lose, replace)

    try:
        yield lane
    finally:
        slurm_cluster.stop(folder)


def kill_machine(pid: int) -> None:
    """A node of the throw-away Slurm is all that has its slurmd's host name: daemons, steps and what they started."""
    machine = os.readlink(f"/proc/{pid}/ns/uts")
    if machine == os.readlink("/proc/self/ns/uts"):
        raise RuntimeError(f"process {pid} is not on a machine of its own")
    for path in Path("/proc").glob("[0-9]*/ns/uts"):
        try:
            if os.readlink(path) == machine:
                os.kill(int(path.parts[2]), signal.SIGKILL)
        except OSError:  # it has ended
            continue


HEADER = ["DRILL", "BACK END", "HARM", "STEP", "WENT ON AFTER", "LOST", "TOOK", "OK"]


def cells(result: Result) -> list[str]:
    """For the table."""
    case = result.case
    return [str(case.number), case.backend, case.fault, str(result.step),
            "-" if result.recovered_s is None else f"{result.recovered_s:.0f} s", str(result.lost),
            f"{result.took_s:.0f} s", result.wrong or "yes"]


def row_of(result: Result) -> str:
    """One line while the others still run."""
    return "  ".join(cells(result))


def report(results: list[Result]) -> None:
    """The table."""
    print()
    ui.print_table(HEADER, [cells(result) for result in results])


if __name__ == "__main__":
    sys.exit(main())
