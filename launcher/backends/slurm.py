"""Slurm as a back end, through its own commands: sbatch, scontrol, sacct, scancel. Logs are files on the file system
that the nodes and this machine share.

The state of a job is what Slurm says; of one that Slurm has forgotten (MinJobAge, often five minutes, and no
accounting), what its script left in the run folder. squeue is not asked: with --json it lists every job of the cluster.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.backends.base import Artifact, Backend, JobStatus, NodeStatus, State, Submission
from launcher.edge import shell
from launcher.errors import BackendError
from launcher.logs.files import LogFiles
from launcher.logs.line import Batch, LogQuery
from launcher.plan import Plan
from launcher.render.slurm import render_slurm
from launcher.runs import Run, RunStore, now, write_whole
from launcher.secrets import secrets_file
from launcher.snapshot import copy_to

ASK_EVERY_S = 2.0
CANCEL_WAIT_S = 60.0

STATES = {
    "PENDING": State.PENDING, "CONFIGURING": State.PENDING, "REQUEUED": State.PENDING, "REQUEUE_HOLD": State.PENDING,
    "REQUEUE_FED": State.PENDING, "SPECIAL_EXIT": State.PENDING, "RESV_DEL_HOLD": State.PENDING,
    "RUNNING": State.RUNNING, "COMPLETING": State.RUNNING, "SUSPENDED": State.RUNNING, "STOPPED": State.RUNNING,
    "SIGNALING": State.RUNNING, "STAGE_OUT": State.RUNNING, "RESIZING": State.RUNNING,
    "COMPLETED": State.SUCCEEDED, "CANCELLED": State.CANCELLED,
    "FAILED": State.FAILED, "TIMEOUT": State.FAILED, "NODE_FAIL": State.FAILED, "OUT_OF_MEMORY": State.FAILED,
    "BOOT_FAIL": State.FAILED, "DEADLINE": State.FAILED, "PREEMPTED": State.FAILED, "REVOKED": State.FAILED,
}  # fmt: skip

ENDINGS = {
    "TIMEOUT": "it reached its time limit",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it used more memory than resources.memory_per_node",
    "BOOT_FAIL": "a node could not be started for it",
    "DEADLINE": "it reached its deadline",
    "PREEMPTED": "a job of higher priority took its nodes",
    "CANCELLED": "cancelled in Slurm",
}

# The longest prefix counts: QOS and Assoc reasons come in dozens.
WAITING = {
    "Resources": "waits for free nodes",
    "Priority": "waits behind jobs of higher priority",
    "Dependency": "waits for another job",
    "QOS": "a limit of the quality of service is reached",
    "Assoc": "a limit of the account is reached",
    "BeginTime": "waits for its start time: it is started again after a failure or a pre-emption",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "JobHeld": "it is held; `scontrol release` lets it go on",
    "PartitionNodeLimit": "the partition gives a job fewer nodes than it asks for",
    "PartitionTimeLimit": "the partition allows a job less time than it asks for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "PartitionConfig": "the partition cannot give what it asks for",
    "BadConstraints": "no node can give what it asks for",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
}

# What sbatch says -> the next command.
REFUSALS = (
    ("partition", "see the partitions: sinfo --summarize; then set `partition` in the cluster's profile"),
    ("account", "see your accounts: sacctmgr show associations user=$USER; then set `account` in the profile"),
    ("qos", "see yours: sacctmgr show associations user=$USER format=account,qos; then set `qos` in the profile"),
    ("feature", "see the nodes' features: sinfo --format='%n %f'; then set `constraint` in the cluster's profile"),
    ("node configuration", "see what a node has: sinfo --format='%P %D %c %m %G'; then lower `resources`"),
    ("time limit", "see the limits: sinfo --format='%P %l'; then lower resources.time_limit"),
    ("memory", "see what a node has: sinfo --format='%P %m'; then lower resources.memory_per_node"),
    ("configuration source", "run launch on a machine of the cluster, or set SLURM_CONF"),
    ("contact slurm controller", "is the cluster up? ask it: scontrol ping"),
    ("no such command", "run launch on a login node of the cluster"),
)

# What a user's shell may hold for jobs of another kind would override the script's own options.
_FOREIGN = re.compile(r"(SBATCH|SRUN|SALLOC|SLURM)_")
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class _Record:
    """A job as Slurm knows it."""

    state: str
    reason: str | None = None
    exit_code: int | None = None
    restarts: int = 0


class SlurmBackend(Backend):
    """Runs jobs on a Slurm cluster."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ

    def render(self, plan: Plan) -> Artifact:
        """The sbatch script."""
        return Artifact("slurm", plan.run_id, render_slurm(plan))

    def check(self, plan: Plan, artifact: Artifact) -> None:
        """Slurm itself says whether it would take the job."""
        self._sbatch(["--test-only"], artifact, self._job_environ(plan.secrets))

    def submit(self, plan: Plan, artifact: Artifact, submission: Submission) -> Run:
        """Lay out what the script needs in the run folder, and send it from the job file's folder."""
        folder = submission.run_dir
        if submission.snapshot:
            copy_to(submission.snapshot, folder / "code")
        if submission.secrets:
            write_whole(folder / "secrets.env", secrets_file(submission.secrets))
        cluster = self._cluster_name()
        printed = self._sbatch(["--parsable"], artifact, self._job_environ(submission.secrets), submission.job_dir)
        job_id = printed.strip().splitlines()[-1].partition(";")[0]
        handle = f"slurm://{cluster}/{job_id}"
        return Run(run_id=plan.run_id, name=plan.name, backend="slurm", handle=handle, cluster=None, nodes=plan.nodes,
                   created=now(), job_dir=str(submission.job_dir), job_id=job_id)

    def status(self, run: Run) -> JobStatus:
        """Slurm's word, and then the exit code: the script leaves it before Slurm notes the end."""
        folder = self.store.folder(run.run_id)
        try:
            record = self._record(run)
        except BackendError:
            if not (folder / "exit_code").exists():
                raise
            record = None
        return _status(run, folder, _read_int(folder / "exit_code"), record)

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """From the files that srun writes."""
        files = LogFiles(self.store.folder(run.run_id) / "logs", query.nodes(run.nodes, run.processes_per_node),
                         began=run.created, ended=self._ended(run))
        return files.read(query, picks=query.picks(run.processes_per_node))

    def cancel(self, run: Run) -> None:
        """scancel: TERM, KillWait seconds for a last checkpoint, then KILL. Waits until Slurm has ended the job."""
        folder = self.store.folder(run.run_id)
        if run.job_id is None or self.status(run).state.ended:
            return
        (folder / "cancelled").touch()
        self._must(["scancel", run.job_id])
        deadline = time.monotonic() + CANCEL_WAIT_S
        while time.monotonic() < deadline and not self.status(run).state.ended:
            time.sleep(0.2)

    def _ended(self, run: Run) -> Callable[[], bool]:
        """Whether the run has ended, for a follower that asks often: the file says it at once, Slurm is asked rarely,
        and a controller that does not answer for a while changes nothing."""
        exit_code = self.store.folder(run.run_id) / "exit_code"
        asked = -ASK_EVERY_S

        def ended() -> bool:
            nonlocal asked
            if exit_code.exists():
                return True
            if time.monotonic() - asked < ASK_EVERY_S:
                return False
            asked = time.monotonic()
            try:
                return self.status(run).state.ended
            except BackendError:
                return False

        return ended

    def _record(self, run: Run) -> _Record | None:
        """What scontrol or else sacct knows of the job; None when both have forgotten it."""
        if run.job_id is None:
            return None
        shown = self._ask(["scontrol", "show", "job", run.job_id])
        if shown.returncode == 0 and "JobState=" in shown.stdout:
            return _from_scontrol(shown.stdout)
        if "nvalid job id" not in shown.stderr:
            raise _refusal(shown)
        if not shell.has_command("sacct"):
            return None
        listed = self._ask(["sacct", "-X", "-P", "-n", "-o", "state,exitcode", "-j", run.job_id])
        lines = listed.stdout.splitlines()
        return _from_sacct(lines[-1]) if listed.returncode == 0 and lines else None

    def _cluster_name(self) -> str:
        config = self._must(["scontrol", "show", "config"])
        match = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        return match[1] if match else "cluster"

    def _sbatch(self, options: list[str], artifact: Artifact, env: dict[str, str], cwd: Path | None = None) -> str:
        return self._must(["sbatch", *options], stdin=artifact.text, env=env, cwd=cwd)

    def _must(self, argv: list[str], **more: Any) -> str:
        """What one of Slurm's commands prints. Raises BackendError with its words."""
        done = self._ask(argv, **more)
        if done.returncode:
            raise _refusal(done)
        return done.stdout

    def _ask(self, argv: list[str], **more: Any) -> shell.Completed:
        try:
            return shell.try_command(argv, **{"env": self.environ, **more})
        except BackendError as error:
            raise BackendError(error.message, _hint(error.message)) from error

    def _job_environ(self, secrets: "dict[str, str] | tuple[str, ...]") -> dict[str, str]:
        """What the job inherits: this environment without the secrets' values and without options for other jobs."""
        environ = {key: value for key, value in self.environ.items()
                   if key not in secrets and (key in _KEPT or not _FOREIGN.match(key))}
        environ["LAUNCH_HOME"] = str(self.store.root.parent)
        return environ


def _refusal(done: shell.Completed) -> BackendError:
    """Slurm's own words, and what to do about them."""
    words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    said = "; ".join(line.partition("error: ")[2] or line for line in words)
    return BackendError(f"{done.args[0]}: {said}", _hint(said))


def _hint(words: str) -> str | None:
    return next((hint for part, hint in REFUSALS if part in words.lower()), None)


def _from_scontrol(text: str) -> _Record:
    """From `scontrol show job`. The first line ends with the name, which is a user's choice; no key is read there."""
    values = dict(re.findall(r"(\b\w+)=(\S+)", text.partition("\n")[2].partition("Command=")[0]))
    return _Record(values["JobState"], values.get("Reason"), _exit_code(values.get("ExitCode", "")),
                   int(values.get("Restarts", "0")))


def _from_sacct(line: str) -> _Record:
    """From one line `state|exitcode`; a state may be `CANCELLED by 1000`."""
    state, code = line.split("|")[:2]
    return _Record(state.split()[0], exit_code=_exit_code(code))


def _exit_code(text: str) -> int | None:
    """`3:0` is exit code 3; `0:15` was ended by signal 15; `0:125`, Slurm's mark of too much memory, is neither."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    code, number = (int(match[1]), int(match[2])) if match else (0, 125)
    if code or number == 0:
        return code
    return 128 + number if number < 65 else None


def _status(run: Run, folder: Path, code: int | None, record: _Record | None) -> JobStatus:
    state, reason = _state(folder, code, record)
    if state.ended and code is None and record is not None:
        code = record.exit_code
    if not state.ended:
        code = None
    return JobStatus(state, reason, code, _nodes(run, folder, state, record))


def _state(folder: Path, code: int | None, record: _Record | None) -> tuple[State, str | None]:
    slurm = STATES.get(record.state, State.UNKNOWN) if record else State.UNKNOWN
    if (folder / "cancelled").exists():
        ended = record is None or slurm.ended
        return (State.CANCELLED, "cancelled by the user") if ended else (State.RUNNING, "being cancelled")
    if code is not None and slurm is not State.CANCELLED:  # Slurm may still be clearing up
        return (State.SUCCEEDED, None) if code == 0 else (State.FAILED, _ending(record, code))
    if record is None:
        return State.UNKNOWN, "Slurm has forgotten this job, and it left no exit code"
    return slurm, _reason(slurm, record)


def _reason(state: State, record: _Record) -> str | None:
    if state is State.PENDING:
        return _waiting(record)
    if state is State.UNKNOWN:
        return f"Slurm calls it {record.state}"
    return _ending(record, record.exit_code) if state in (State.FAILED, State.CANCELLED) else None


def _ending(record: _Record | None, code: int | None) -> str:
    words = ENDINGS.get(record.state) if record else None
    if words and record:
        return f"{words} ({record.state})"
    return f"exit code {code}"


def _waiting(record: _Record) -> str:
    reason = (record.reason or "None").strip(",")
    if reason == "None":
        return "not looked at by the scheduler yet"
    words = next((WAITING[start] for start in sorted(WAITING, key=len, reverse=True) if reason.startswith(start)), None)
    return f"{words} ({reason})" if words else reason


def _nodes(run: Run, folder: Path, state: State, record: _Record | None) -> tuple[NodeStatus, ...]:
    """One row a node, once it has nodes: their names as the script wrote them, the codes they ended with."""
    hosts = _read(folder / "hosts").split()
    if state is State.PENDING or not hosts:
        return ()
    rows = []
    for node, host in enumerate(hosts):
        word = _read(folder / "nodes" / str(node)).split()
        code = int(word[0]) if word and word[0].isdigit() else None
        rows.append(NodeStatus(node, _node_state(state, code), host, code, None, record.restarts if record else 0))
    return tuple(rows)


def _node_state(state: State, code: int | None) -> State:
    if code is None or state is State.CANCELLED:
        return state
    return State.SUCCEEDED if code == 0 else State.FAILED


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _read_int(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None
