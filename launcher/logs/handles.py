"""How many files and connections this process may have open."""

import resource

from launcher.errors import BackendError

SPARE = 64


def allow_open_files(count: int) -> None:
    """Raise the soft limit until `count` more fit. Raises BackendError when the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise BackendError(f"reading so many nodes at once takes {needed} open files, and {hard} are allowed here",
                           "raise the hard limit (ulimit -Hn), or read some nodes only: launch logs --node N")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
