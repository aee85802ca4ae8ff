"""A copy of what a node's processes print, on a volume: a file a pod, `STAMP LINE` a line, from which the launcher
fills what the node has thrown away of the pod's own log (`python3 -m trainer.node.archive FILE AFTER BEFORE`).

Training never waits for the volume: when it is full, hangs or cannot be written, there is one warning and no more copy.
What there is of it is the whole beginning of the output; a last line `end` says that it is all of it.
"""

import base64
import contextlib
import os
import select
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

PAUSE_S = 1.0  # between two writes: a shared volume has thousands of clients
MAX_WAITING = 64 * 2**20  # bytes that may wait for the volume
MAX_LINE = 2**20
END_WAIT_S = 5.0
END = b"end\n"
STAMP_LENGTH = 30
SLACK = timedelta(seconds=5)  # the node's stamps of the same lines differ a little
MAX_ANSWER = 4 * 2**20  # bytes, compressed; a node keeps some 10 MB of the log that this is read from
PIPE = 2**16


class Archive:
    """The file. Everything but `close` returns at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._rest = b""
        self._newest = b""
        self._closed = threading.Event()
        self._failed = False
        self.warning: str | None = None  # for who prints whole lines; it comes once
        self._thread = threading.Thread(target=self._write_until_closed, daemon=True)
        self._thread.start()

    def add(self, data: bytes) -> None:
        """Keep what was printed; a line gets the time of its end."""
        if self._failed:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._newest = max(self._newest, _now())
        with self._lock:
            for line in lines:
                self._waiting += self._newest + b" " + line + b"\n"
            if len(self._waiting) > MAX_WAITING or len(self._rest) > MAX_LINE:
                self._fail("the volume is too slow, or a line too long")

    def close(self) -> None:
        """Write what is left; a volume that hangs is not waited for."""
        if self._rest:
            self.add(b"\n")
        self._closed.set()
        self._thread.join(END_WAIT_S)

    def _write_until_closed(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            while not self._failed and not self._closed.wait(PAUSE_S):
                self._write(descriptor, b"")
            if not self._failed:
                self._write(descriptor, END)
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _write(self, descriptor: int, end: bytes) -> None:
        with self._lock:
            data, self._waiting = bytes(self._waiting) + end, bytearray()
        while data:
            data = data[os.write(descriptor, data):]
            if not data:
                os.fdatasync(descriptor)  # others read it while it grows

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed, self._waiting = True, bytearray()
            self.warning = f"warning: {self._path}: {why}; the log goes on without this copy\n"


@contextlib.contextmanager
def copied_output(environ: Mapping[str, str], node: int) -> Iterator[int | None]:
    """A descriptor for the output of a process that ends inside the block: it goes to our own output at once, and to
    the archive. None where no archive is wanted (LAUNCH_LOG_ARCHIVE, with LAUNCH_POD_NAME)."""
    folder = environ.get("LAUNCH_LOG_ARCHIVE")
    if not folder:
        yield None
        return
    archive = Archive(Path(folder) / f"node-{node}.{environ.get('LAUNCH_POD_NAME', 'pod')}.log")
    reading, writing = os.pipe()
    ended = threading.Event()
    copying = threading.Thread(target=_copy, args=(reading, archive, ended), daemon=True)
    copying.start()
    try:
        yield writing
    finally:
        ended.set()
        copying.join()
        archive.close()
        os.close(writing)


def _copy(reading: int, archive: Archive, ended: threading.Event) -> None:
    """Until the process has ended and what it had printed before, which is a pipe's content at most, was copied."""
    left, whole, output = PIPE, True, sys.stdout.buffer
    try:
        while left > 0:
            last = ended.is_set()
            if select.select([reading], [], [], 0 if last else 0.1)[0]:
                data = os.read(reading, PIPE)
                output.write(data)
                output.flush()
                archive.add(data)
                whole, left = data.endswith(b"\n"), left - len(data) * last
            elif last:
                return
            if archive.warning and whole:
                output.write(archive.warning.encode())
                output.flush()
                archive.warning = None
    finally:
        os.close(reading)  # without us nobody reads what is printed: let the process know


def _now() -> bytes:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z".encode()


def _shifted(stamp: str, by: timedelta) -> bytes:
    moment = datetime.fromisoformat(stamp[:19]) + by
    return f"{moment:%Y-%m-%dT%H:%M:%S}{stamp[19:]}".encode()


def excerpt(path: Path, after: str, before: str) -> Iterator[bytes]:
    """The lines between two stamps and some seconds around them; `-` is the beginning or the end."""
    first = b"" if after == "-" else _shifted(after, -SLACK)
    last = b"~" if before == "-" else _shifted(before, SLACK)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and first <= line[:STAMP_LENGTH] <= last:
                yield line


def has_reached(path: Path, before: str) -> bool:
    """Whether the file has the line of this stamp; it is written a little later than it is printed."""
    wanted = b"end" if before == "-" else before.encode()
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 2 * MAX_LINE))
        *_, newest, _ = [b"", *file.read().split(b"\n")]
    return newest[:STAMP_LENGTH] >= wanted


def main(argv: list[str]) -> int:
    """Print a part of an archive, compressed and in base64: logs are no place for other bytes, and are cut."""
    path, after, before = Path(argv[0]), argv[1], argv[2]
    deadline = time.monotonic() + END_WAIT_S
    try:
        while not has_reached(path, before) and time.monotonic() < deadline:
            time.sleep(0.2)
        packer, size, packed = zlib.compressobj(), 0, []
        for line in excerpt(path, after, before):
            packed.append(packer.compress(line))
            size += len(packed[-1])
            if size > MAX_ANSWER:
                sys.stderr.write("error: it is too much for a log\n")
                return 1
    except OSError as error:
        sys.stderr.write(f"error: {path}: {error.strerror}\n")
        return 1
    data = base64.b64encode(b"".join([*packed, packer.flush()])).decode()
    for start in range(0, len(data), 4096):
        sys.stdout.write(f"{data[start:start + 4096]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
