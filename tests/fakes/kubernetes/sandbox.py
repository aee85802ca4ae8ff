"""Runs one command like a container: own root view, /proc, hostname and PID 1.

`unshare` gives private namespaces; the root is an overlay of the host's, so a
container sees the host's programs and loses all it writes outside its mounts.
Being PID 1 there matters: a process without a handler ignores SIGTERM, and all
others die with it. Needs root, or a kernel that lets users make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from .logs import ContainerLog

_NAMESPACES = ["--mount", "--uts", "--pid", "--fork", "--kill-child"]
_START_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host bound to `target`, or a tmpfs of `size_bytes`. Of a `copied` folder the container
    sees what it held at the start, and writes to a copy."""

    target: str
    source: Path | None = None
    size_bytes: int | None = None
    read_only: bool = False
    copied: bool = False


@dataclass(frozen=True)
class ProcessSpec:
    argv: list[str]
    env: dict[str, str]
    hostname: str
    working_dir: str = "/"
    user: str | None = None
    groups: str = ""
    read_only_root: bool = False
    mounts: list[Mount] = field(default_factory=list)


class Sandbox:
    """A started container; `folder` on the host is its private scratch place."""

    def __init__(self, spec: ProcessSpec, folder: Path, log: ContainerLog, on_exit: Callable[[], None]) -> None:
        self._folder = folder
        self._log = log
        self.oom_killed = False
        self._killed = False
        folder.mkdir(parents=True)
        script = folder / "start.sh"
        script.write_text(_script(spec, folder))
        rootless = ["--map-root-user"] if os.geteuid() else []
        # unshare complains on its stderr when its child is killed. That must stay out of
        # the log, so the script gets the log's stderr as its stdin and moves it.
        stderr_read, stderr_write = os.pipe()
        self._popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, *rootless, "sh", "-e", str(script)],
            stdin=stderr_write,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(stderr_write)
        assert self._popen.stdout
        log.pump(self._popen.stdout)
        log.pump(os.fdopen(stderr_read, "rb"))
        self._await_start()
        threading.Thread(target=self._reap, args=(on_exit,), daemon=True).start()

    def _await_start(self) -> None:
        """Signals sent before the command runs would be lost, so return only then."""
        deadline = time.monotonic() + _START_DEADLINE_S
        while not (self._folder / "started").exists() and self._popen.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.003)

    def _reap(self, on_exit: Callable[[], None]) -> None:
        self._popen.wait()
        on_exit()

    @property
    def start_error(self) -> str | None:
        """Why the command could not be started, if it could not."""
        note = self._folder / "start_error"
        return note.read_text().strip() if note.exists() else None

    def exit_code(self) -> int | None:
        """None while it runs; 128 + N after signal N."""
        code = self._popen.poll()
        if code and self._killed:
            return 128 + signal.SIGKILL  # unshare itself cannot pass this one on
        return code if code is None or code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Send to the main process alone, as a kubelet does."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
            os.kill(self._main_pid(), number)
            self._killed = self._killed or number == signal.SIGKILL

    def kill(self) -> None:
        """End everything inside at once."""
        self.signal(signal.SIGKILL)
        if not (self._folder / "started").exists():
            self._popen.kill()

    def wait(self) -> None:
        """Return once all inside has ended."""
        self._popen.wait(timeout=10)

    def _main_pid(self) -> int:
        pid = self._popen.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


_END = "END_OF_THE_ENVIRONMENT"


def _script(spec: ProcessSpec, folder: Path) -> str:
    private, root = quote(str(folder / "ns")), quote(str(folder / "ns/root"))
    lines = [
        "exec 2>&0 </dev/null",
        f"mkdir {private}",
        f"mount -t tmpfs tmpfs {private}",
        f"cd {private}",
        "mkdir up work root dev_up dev_work",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={private}/up,workdir={private}/work root",
        f"mount -t overlay overlay -o lowerdir=/dev,upperdir={private}/dev_up,workdir={private}/dev_work root/dev",
        "mount -t proc proc root/proc",
        "mount --rbind /sys root/sys",
        "mount -t tmpfs -o size=64m shm root/dev/shm",
        f"hostname {quote(spec.hostname)}",
        'place() { t=root$(chroot root realpath -m "$1"); }',
    ]
    if spec.user:
        # On the overlay only: the folders on the host keep their modes.
        closed = [quote(f"root{path}") for path in _closed_parents(spec)]
        lines += [f"[ ! -e {path} ] || chmod a+x {path}" for path in closed]
    for mount in spec.mounts:
        lines += _mount_lines(mount)
    lines.append(f"chroot root mkdir -p {quote(spec.working_dir)}")
    if spec.read_only_root:
        lines.append("mount -o remount,ro root")
    return "\n".join([*lines, *_exec_lines(spec, folder, root)]) + "\n"


def _mount_lines(mount: Mount) -> list[str]:
    lines = [f"place {quote(mount.target)}"]
    if mount.source and mount.copied:
        return [*lines, *_copy_lines(mount.source)]
    if mount.source is None:
        size = f"-o size={mount.size_bytes},mode=1777" if mount.size_bytes else "-o mode=1777"
        return [*lines, 'mkdir -p "$t"', f'mount -t tmpfs {size} tmpfs "$t"']
    if mount.source.is_dir():
        lines.append('mkdir -p "$t"')
    else:
        lines.append('mkdir -p "${t%/*}"; [ -e "$t" ] || : > "$t"')
    lines.append(f'mount --bind {quote(str(mount.source))} "$t"')
    if mount.read_only:
        lines.append('mount -o remount,bind,ro "$t"')
    return lines


def _copy_lines(source: Path) -> list[str]:
    """An overlay of its own. The layer below is bound first, so that no character of its path can end an option."""
    return [
        "copy=$(mktemp -d copy-XXXXXX)",
        'mkdir "$copy/below" "$copy/up" "$copy/work"',
        f'mount --bind {quote(str(source))} "$copy/below"',
        'mkdir -p "$t"',
        'mount -t overlay overlay -o "lowerdir=$copy/below,upperdir=$copy/up,workdir=$copy/work" "$t"',
        'chmod a+x "$t"',
    ]


def _closed_parents(spec: ProcessSpec) -> list[Path]:
    """Folders above our Python and the shared paths that only root may enter; an image has no such."""
    paths = [Path(sys.prefix), Path(sys.base_prefix)]
    paths += [mount.source for mount in spec.mounts if mount.source and str(mount.source) == mount.target]
    parents = {parent for path in paths for parent in path.parents}
    return sorted(path for path in parents if not path.stat().st_mode & 1)


def _exec_lines(spec: ProcessSpec, folder: Path, root: str) -> list[str]:
    as_user = f"--userspec={spec.user} --groups={quote(spec.groups)} " if spec.user else ""
    inside = f"chroot {as_user}{root} /usr/bin/env -i --chdir={quote(spec.working_dir)}"
    words = " ".join(map(quote, spec.argv))
    # not as words of `env`: a command line can be read by everybody
    exports = [f"export {name}={quote(value)}" for name, value in spec.env.items()]
    path = quote(f"PATH={spec.env.get('PATH', '/usr/bin:/bin')}")
    probe = f"""{inside} {path} /bin/sh -c 'command -v -- "$1" >/dev/null' sh"""
    command = quote(spec.argv[0])
    message = (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        f'runc create failed: unable to start container process: exec: "{spec.argv[0]}": '
        f"stat {spec.argv[0]}: no such file or directory"
    )
    note = quote(str(folder / "start_error"))
    return [
        f"{probe} {command} || {{ printf '%s' {quote(message)} > {note}; exit 128; }}",
        f": > {quote(str(folder / 'started'))}",
        f"""exec {inside} /bin/sh -c 'eval "$(/bin/cat <&3)"; exec 3<&- "$@"' sh {words} 3<<'{_END}'""",
        *exports,
        _END,
    ]
