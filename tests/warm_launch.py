"""Commands in processes that have the launcher loaded already: a fork server pays for the imports once, and a command
takes a tenth of the time. Each is a process of its own all the same, with its own folder, environment and streams."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded_launch"])


def _command(args: Sequence[str], cwd: Path, env: dict[str, str], streams: Sequence[str]) -> None:
    for descriptor, (path, mode) in enumerate(zip(streams, ("r", "w", "w"), strict=True)):
        with open(path, mode) as stream:
            os.dup2(stream.fileno(), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    from launcher import cli

    sys.argv = [cli.__file__, *args]
    cli.main()


def run(args: Sequence[str], cwd: Path, env: dict[str, str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """As subprocess.run of a command whose output is captured; it reads nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = SERVER.Process(target=_command, args=(args, cwd, env, (os.devnull, str(out), str(err))))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["launch", *args], timeout_s, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(["launch", *args], process.exitcode, out.read_text(), err.read_text())
