"""What was read of pods' logs, kept in the run folder: a file a pod, lines with their stamps as the API gave them."""

import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.hosts.log_times import BLOCK, whole_lines
from launcher.backends.kubernetes.logs.stamped import Position, is_stamped, log_line
from launcher.errors import LaunchError
from launcher.logs.line import Batch, Gap, LogLine, gap_line

# Kept among the lines. No line of a job looks so: theirs begin with a digit.
_GAP = re.compile(rb"gap (\S+) (\S+) (.*)")


@dataclass(frozen=True)
class ArchivedPod:
    """The file that keeps one pod's log: `node-NODE.BORN.POD.log`.

    `BORN` is the pod's creation time, so that a node's files sort in the order of its attempts.
    """

    folder: Path
    node: int
    born: str
    pod: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / f"node-{self.node}.{re.sub('[^0-9]', '', self.born)}.{self.pod}.log"

    def batches(self, position: Position | None = None) -> Iterator[Batch]:
        """Every whole line and every gap, some at a time; `position` is moved past them."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        rest = b""
        with file:
            while block := file.read(BLOCK):
                *lines, rest = (rest + block).split(b"\n")
                if position:
                    position.take([line for line in lines if is_stamped(line)])
                yield [self._line(line) for line in lines if is_stamped(line) or _GAP.match(line)]

    def _line(self, line: bytes) -> LogLine:
        match = _GAP.match(line)
        if not match:
            return log_line(self.node, line)
        after, before, why = (part.decode("utf-8", errors="replace") for part in match.groups())
        return gap_line(self.node, Gap(after, None if before == "-" else before, why))


class ArchiveWriter:
    """Appends to an archived pod, while no other process does: the second one to come writes nothing."""

    def __init__(self, archived: ArchivedPod) -> None:
        self._path = archived.path
        try:
            archived.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._drop_half_line()
        except BlockingIOError:
            self._file.close()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def append(self, lines: list[bytes]) -> None:
        """Add stamped lines; they are in the file when this returns. Raises LaunchError, as when the disk is full."""
        if lines and not self._file.closed:
            self._write(b"\n".join(lines) + b"\n")

    def append_gap(self, gap: Gap) -> None:
        """Note that lines are missing here."""
        if not self._file.closed:
            self._write(f"gap {gap.after} {gap.before or '-'} {gap.why}\n".encode())

    def close(self) -> None:
        """Let another process write."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _drop_half_line(self) -> None:
        """Remove what a killed process left of a line."""
        self._file.seek(whole_lines(self._file, self._file.seek(0, 2)))
        self._file.truncate()


def _unwritable(path: Path, error: OSError) -> LaunchError:
    return LaunchError(f"{path}: the log cannot be kept: {error.strerror}",
                       "see how much room is left: df -h " + str(path.parent))


def archived_pods(folder: Path, node: int) -> list[ArchivedPod]:
    """What was kept of a node, by age."""
    found = []
    for path in folder.glob(f"node-{node}.*.log"):
        match = re.fullmatch(r"node-\d+\.(\d+)\.(.+)\.log", path.name)
        if match:
            found.append(ArchivedPod(folder, node, match[1], match[2]))
    return sorted(found, key=lambda pod: (pod.born, pod.pod))
