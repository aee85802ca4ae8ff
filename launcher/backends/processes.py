"""The only place that starts processes. Always an argument list, never a shell string."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import BackendError

TAIL = 2000
Completed = subprocess.CompletedProcess[str]


def run_command(argv: Sequence[str], *, stdin: str | None = None, timeout_s: float = 60, cwd: Path | None = None,
                env: Mapping[str, str] | None = None) -> str:
    """Run to the end and return stdout. Raises BackendError with the command and the end of its stderr."""
    done = try_command(argv, stdin=stdin, timeout_s=timeout_s, cwd=cwd, env=env)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "it printed nothing")[-TAIL:]
        raise BackendError(f"{argv[0]} exited with {done.returncode}: {words}")
    return done.stdout


def try_command(argv: Sequence[str], *, stdin: str | None = None, timeout_s: float = 60, cwd: Path | None = None,
                env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run to the end, whatever the exit code. Raises BackendError when it cannot start or does not end.

    In a session of its own: a Ctrl-C is for launch, which decides what becomes of a command that sends something.
    """
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout_s,
                              cwd=cwd, env=env, check=False, start_new_session=True)
    except FileNotFoundError as error:
        raise BackendError(f"{argv[0]}: no such command on this machine") from error
    except PermissionError as error:
        raise BackendError(f"{argv[0]}: may not be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{' '.join(argv[:3])}: no answer within {timeout_s:g} s") from error


def start_detached(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], keep_fd: int) -> int:
    """Start in a session of its own, without terminal; returns the pid, which is also the process group.

    `keep_fd` stays open in the child and in everything it starts: a lock on it tells whether any of them lives.
    """
    process = subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(keep_fd,))
    return process.pid


def run_in_front(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> int:
    """Run with this process's own streams; returns the exit code (128 + N for a signal, as shells do). Ctrl-C is for
    the command alone, which this one outlives."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a signal that is ignored would be ignored there, too
    try:
        code = subprocess.run(argv, cwd=cwd, env=env, check=False).returncode
    except FileNotFoundError as error:
        raise BackendError(f"{argv[0]}: no such command on this machine") from error
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def signal_group(pid: int, number: signal.Signals) -> bool:
    """Signal a process group; False when it is gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_process(pid: int, number: signal.Signals) -> bool:
    """Signal one process; False when it is gone, or has ended and nobody has asked for its exit code."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def signal_session(session: int, number: signal.Signals) -> None:
    """Signal every process of a session, whatever groups they are in (Linux)."""
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            if os.getsid(pid) == session:
                os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def has_command(name: str) -> bool:
    """Whether `name` is on PATH."""
    return shutil.which(name) is not None
