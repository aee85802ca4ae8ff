"""What the scripts of Slurm and of this machine leave in the run folder: `exit_code`, and `attempts/K/` with `hosts`
and, for each node that has ended, `nodes/N`: its exit code, and `yes` if a stop had been requested."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from launcher.runs.status import NodeStatus, State, exit_words


def read_exit_code(folder: Path) -> int | None:
    """What the run ended with; None while it has not, or when its script was killed."""
    text = _read(folder / "exit_code").strip()
    return int(text) if text.isdigit() else None


def ended_at(folder: Path) -> str | None:
    """When that was; None while it has not ended."""
    try:
        return datetime.fromtimestamp((folder / "exit_code").stat().st_mtime, UTC).isoformat(timespec="microseconds")
    except FileNotFoundError:
        return None


def latest_attempt(folder: Path) -> int:
    """How often the run was started again."""
    return max((int(path.name) for path in folder.glob("attempts/*") if path.name.isdigit()), default=0)


def node_rows(folder: Path, attempt: int, state: State, hosts: list[str],
              meanings: Mapping[str, str]) -> tuple[NodeStatus, ...]:
    """One row a node of this attempt of a run in `state`. `meanings`: of its exit codes."""
    rows = []
    for node, host in enumerate(hosts):
        word = _read(folder / f"attempts/{attempt}/nodes/{node}").split()
        code = int(word[0]) if word and word[0].isdigit() else None
        reason = exit_words(code, meanings) if code else None
        rows.append(NodeStatus(node, _node_state(state, code), host, code, reason, attempt))
    return tuple(rows)


def read_hosts(folder: Path, attempt: int) -> list[str]:
    """The nodes of an attempt, node 0 first; none before its script has begun."""
    return _read(folder / f"attempts/{attempt}/hosts").split()


def _node_state(state: State, code: int | None) -> State:
    if code is None or state is State.CANCELLED:
        return state
    return State.SUCCEEDED if code == 0 else State.FAILED


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
