"""Durations and byte sizes as people write them in a job file. Pure."""

import re

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "": 1}
DURATION = r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?"
DURATION_FORM = "a duration such as 90s, 30m, 12h or 1d12h"
SIZE_FORM = "a size such as 512Gi or 64G"
SIZE = r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T|)"


def duration_s(text: str) -> int:
    """Seconds of `90m`, `12h`, `1d12h`. Raises ValueError for anything else, and for zero."""
    if not text or not re.fullmatch(DURATION, text):
        raise ValueError(f"must be {DURATION_FORM}, not {text!r}")
    total = sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))
    if total == 0:
        raise ValueError(f"must be a duration of at least 1s, not {text!r}")
    return total


def size_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity such as `512Gi`. Raises ValueError for anything else, and for zero."""
    match = re.fullmatch(SIZE, text)
    if not match:
        raise ValueError(f"must be {SIZE_FORM}, not {text!r}")
    total = int(float(match[1]) * _BYTES[match[2]])
    if total < 1:
        raise ValueError(f"must be a size of at least 1 byte, not {text!r}")
    return total


def rough_duration(seconds: float) -> str:
    """For people, in the largest unit that fits: `40 s`, `12 min`, `3 h`, `5 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def slurm_time(seconds: int) -> str:
    """`D-HH:MM:SS`, the form that sbatch --time reads (its resolution is a minute, rounded up by Slurm)."""
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"


def slurm_mem(size: int) -> str:
    """Mebibytes with Slurm's suffix M, rounded up."""
    return f"{-(-size // 2**20)}M"
