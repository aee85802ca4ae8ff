"""The copy of a node's output on a volume: exact, and never in the way."""

import base64
import os
import signal
import subprocess
import sys
import zlib

import pytest

MAIN = """
import sys
from pathlib import Path
from trainer.node import archive
from trainer.node import entrypoint
archive.END_WAIT_S = 1.0
with archive.copied_output({"LAUNCH_LOG_ARCHIVE": sys.argv[1], "LAUNCH_POD_NAME": "p"}, 3) as output:
    code, _ = entrypoint.supervise(["bash", "-c", sys.argv[2]], {}, 5, output)
sys.exit(code)
"""
SCRIPT = r"for i in $(seq 1 3000); do echo $i; echo err $i >&2; done; printf '1%%\r2%%\r\n\n\377\nno end'; exit 75"


def start(folder, script):
    return subprocess.Popen([sys.executable, "-c", MAIN, str(folder), script], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def expected():
    return subprocess.run(["bash", "-c", f"exec 2>&1; {SCRIPT}"], capture_output=True, check=False).stdout


def excerpt(path, after="-", before="-"):
    done = subprocess.run([sys.executable, "-m", "trainer.node.archive", str(path), after, before], capture_output=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return zlib.decompress(base64.b64decode(done.stdout)).split(b"\n")[:-1]


def test_every_line_is_printed_and_archived_as_it_came(tmp_path):
    process = start(tmp_path / "new/run", SCRIPT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors) == (75, expected(), b"")
    path = tmp_path / "new/run/node-3.p.log"
    *lines, end = excerpt(path)
    assert (b"\n".join(line[31:] for line in lines), end) == (printed, b"end")
    stamps = [line[:30].decode() for line in lines]
    assert stamps == sorted(stamps)
    assert path.stat().st_mode & 0o777 == 0o600
    assert excerpt(path, stamps[0], stamps[-1]) == lines  # all within seconds
    assert excerpt(path, "2026-01-01T00:00:00.000000000Z", "2026-01-01T00:00:01.000000000Z") == []


def no_folder(folder):
    folder.write_text("a file")


def full(folder):
    folder.mkdir()
    (folder / "node-3.p.log").symlink_to("/dev/full")


def hanging(folder):
    folder.mkdir()
    os.mkfifo(folder / "node-3.p.log")  # to open it waits for a reader


@pytest.mark.parametrize(("make", "why"), [(no_folder, "File exists"), (full, "No space left on device"),
                                           (hanging, None)])
def test_a_volume_in_trouble_stops_nothing(tmp_path, make, why):
    folder = tmp_path / "volume"
    make(folder)
    process = start(folder, f"sleep 0.3; {SCRIPT}")
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, b"")
    told = f"warning: {folder}/node-3.p.log: {why}; the log goes on without this copy\n".encode() if why else b""
    assert printed.replace(told, b"", 1) == expected()
    assert printed.count(b"warning") <= 1


def test_a_line_is_printed_at_once_and_signals_arrive(tmp_path):
    process = start(tmp_path, "trap 'echo told; exit 75' TERM; printf 'no line end'; while true; do sleep 0.05; done")
    assert process.stdout.read(11) == b"no line end"
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (75, b"told\n")


def test_what_a_process_leaves_in_the_background_is_not_waited_for(tmp_path):
    process = start(tmp_path, "setsid sleep 600 & echo $!")
    assert process.wait(60) == 0  # while somebody still holds the pipe
    os.kill(int(process.stdout.read()), signal.SIGKILL)


def test_a_file_that_is_not_there_is_said():
    command = [sys.executable, "-m", "trainer.node.archive", "/none", "-", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: /none: No such file or directory\n")
