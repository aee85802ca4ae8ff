"""What Slurm and a run's own files say, in the words that all back ends use. Reads files; asks nobody."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.hosts.attempts import ended_at, latest_attempt, node_rows, read_exit_code, read_hosts
from launcher.runs.status import JobStatus, State, exit_words

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
    "BOOT_FAIL": "a node failed to boot",
    "DEADLINE": "it reached its deadline",
    "PREEMPTED": "it was preempted by a job of higher priority",
    "CANCELLED": "cancelled in Slurm",
}

REASONS = {"TimeLimit": "TIMEOUT", "NodeDown": "NODE_FAIL", "OutOfMemory": "OUT_OF_MEMORY"}

# The longest prefix counts: QOS and Assoc reasons come in dozens.
WAITING = {
    "Resources": "waiting for free nodes",
    "Priority": "waiting behind jobs of higher priority",
    "Dependency": "waiting for a job that it depends on",
    "QOS": "a QOS limit is reached",
    "Assoc": "an account limit is reached",
    "BeginTime": "waiting for its start time: it is restarted after a failure or preemption",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "JobHeld": "it is held; scontrol release lets it start",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionTimeLimit": "it asks for more time than the partition allows",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition does not accept jobs now",
    "PartitionConfig": "the partition's configuration does not allow it",
    "BadConstraints": "no node meets its constraints",
    "Licenses": "waiting for a license",
    "Reservation": "waiting for its reservation",
}

@dataclass(frozen=True)
class Record:
    """A job as Slurm knows it. `start` is when it began or, of one that waits, is expected to; None when unknown."""

    state: str
    reason: str | None = None
    exit_code: int | None = None
    restarts: int = 0
    start: str | None = None


def from_scontrol(text: str) -> Record:
    """From `scontrol show job`. The first line ends with the name, which is a user's choice; no key is read there."""
    values = dict(re.findall(r"(\b\w+)=(\S+)", text.partition("\n")[2].partition("Command=")[0]))
    return Record(values["JobState"], values.get("Reason"), _exit_code(values.get("ExitCode", "")),
                   int(values.get("Restarts", "0")), _time(values.get("StartTime", "")))


def from_sacct(line: str) -> Record:
    """From one line `state|exitcode`; a state may be `CANCELLED by 1000`."""
    state, code = line.split("|")[:2]
    return Record(state.split()[0], exit_code=_exit_code(code))


def _time(text: str) -> str | None:
    """A moment, in the cluster's own time zone; `Unknown` and `N/A` are none."""
    return text if re.match(r"\d{4}-", text) else None


def _exit_code(text: str) -> int | None:
    """`3:0` is exit code 3; `0:15` was ended by signal 15; `0:125`, Slurm's mark of too much memory, is neither."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    code, number = (int(match[1]), int(match[2])) if match else (0, 125)
    if code or number == 0:
        return code
    return 128 + number if number < 65 else None


def slurm_status(folder: Path, record: Record | None, meanings: Mapping[str, str]) -> JobStatus:
    """The status of the run in this folder, of which Slurm has this record: Slurm's word, and then the exit code, which
    the script leaves before Slurm notes the end. `meanings`: of exit codes."""
    code = read_exit_code(folder)
    state, reason = _state(folder, code, record, meanings)
    if state.ended and code is None and record is not None:
        code = record.exit_code
    attempt = record.restarts if record else latest_attempt(folder)
    hosts = read_hosts(folder, attempt) if state is not State.PENDING else []
    nodes = node_rows(folder, attempt, state, hosts, meanings)
    if not state.ended:
        return JobStatus(state, reason, None, nodes, gone=record is None)
    return JobStatus(state, reason, code, nodes, ended_at(folder))


def _state(folder: Path, code: int | None, record: Record | None,
           meanings: Mapping[str, str]) -> tuple[State, str | None]:
    slurm = STATES.get(record.state, State.UNKNOWN) if record else State.UNKNOWN
    if (folder / "cancelled").exists():
        ended = record is None or slurm.ended
        return (State.CANCELLED, "cancelled by the user") if ended else (State.RUNNING, "being cancelled")
    # Slurm may still be clearing up; a job that waits once more was put back into the queue by hand
    if code is not None and slurm not in (State.CANCELLED, State.PENDING):
        return (State.SUCCEEDED, None) if code == 0 else (State.FAILED, _ending(folder, record, code, meanings))
    if record is None:
        return State.UNKNOWN, "Slurm no longer knows this job, and it left no exit code"
    return slurm, _reason(folder, slurm, record, meanings)


def _reason(folder: Path, state: State, record: Record, meanings: Mapping[str, str]) -> str | None:
    if state is State.PENDING:
        return _waiting(record)
    if state is State.UNKNOWN:
        return f"its state in Slurm is {record.state}"
    if state in (State.FAILED, State.CANCELLED):
        return _ending(folder, record, record.exit_code, meanings)
    return None


def _ending(folder: Path, record: Record | None, code: int | None, meanings: Mapping[str, str]) -> str:
    """Slurm's reason, which it has before the final state; a task that was killed for its memory leaves a note, and so
    does a line of `setup` that failed."""
    state = REASONS.get(record.reason or "", record.state) if record else ""
    attempt = folder / f"attempts/{latest_attempt(folder)}"
    if state not in ENDINGS and (attempt / "out_of_memory").exists():
        state = "OUT_OF_MEMORY"
    if state not in ENDINGS and (attempt / "failed_setup").exists():
        line = (attempt / "failed_setup").read_text(encoding="utf-8", errors="replace").strip()
        return f"sbatch.setup failed: {line}: {exit_words(code, {})}"
    return f"{ENDINGS[state]} ({state})" if state in ENDINGS else exit_words(code, meanings)


def _waiting(record: Record) -> str:
    expected = f"; expected to start at {record.start}" if record.start else ""
    return _why_waiting(record) + expected


def _why_waiting(record: Record) -> str:
    reason = (record.reason or "None").strip(",")
    if reason == "None":
        return "not yet considered by the scheduler"
    words = next((WAITING[start] for start in sorted(WAITING, key=len, reverse=True) if reason.startswith(start)), None)
    return f"{words} ({reason})" if words else reason


