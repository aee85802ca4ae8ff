"""How much memory of this machine a process may still take: the kernel's estimate, or what its container is given."""

from pathlib import Path

# limit, usage and statistics of a container's control group, and the name there of file pages that can be dropped
GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_bytes(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes. Droppable file pages count as free, as they do for Kubernetes."""
    free = _table(meminfo).get("MemAvailable:", 0) * 1024
    for limit, usage, statistics, droppable in GROUPS:
        allowed, used = _number(group / limit), _number(group / usage)
        if allowed is not None and used is not None:
            free = min(free, allowed - used + _table(group / statistics).get(droppable, 0))
    return max(0, free)


def _table(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    """None where there is none, or no limit ("max")."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
