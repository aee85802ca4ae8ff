"""Log text in which every line has its time in front, as the Kubernetes API gives it: splitting it, remembering how
far it was read, and keeping it in a file. No network.
"""

import fcntl
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.logs.line import LogLine, last_drawing

BLOCK = 2**20
STAMP_LENGTH = 30
SECOND_LENGTH = 19
# Any other text that comes with status 200 is a message of the node, not a line of the job.
_STAMPED = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z(?: |$)")


def whole_lines(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The stamped lines of each piece, without line ends. An unfinished last line is left out: it comes again."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield [line for line in lines if _STAMPED.match(line)]


def log_line(node: int, line: bytes) -> LogLine:
    """A stamped line as what users see; of a line redrawn with carriage returns, the last drawing."""
    return LogLine(node, last_drawing(line[STAMP_LENGTH + 1:]), line[:STAMP_LENGTH].decode())


class Position:
    """How far a log was read, exact although the API resumes at whole seconds only.

    Everything from the start of the last second comes again; so the stamps of that second are counted, and as many
    of each are dropped. Equal stamps and stamps that run backwards within the second are no trouble.
    """

    def __init__(self) -> None:
        self._second = ""
        self._seen: Counter[bytes] = Counter()
        self._repeated: Counter[bytes] = Counter()
        self._floor = ""

    def resume(self) -> str | None:
        """The `sinceTime` to ask for, or None for the whole log; what was read is dropped from then on."""
        self._repeated = self._seen.copy()
        self._floor = self._second
        return f"{self._second}Z" if self._second else None

    def is_new(self, line: bytes) -> bool:
        """Whether this line was not read before; it is from now on."""
        stamp, second = line[:STAMP_LENGTH], line[:SECOND_LENGTH].decode()
        if second < self._floor:
            return False
        if self._repeated[stamp] > 0:
            self._repeated[stamp] -= 1
            return False
        if second > self._second:
            self._second = second
            self._seen.clear()
        if second == self._second:
            self._seen[stamp] += 1
        return True


@dataclass(frozen=True)
class ArchivedPod:
    """The file that keeps one pod's log: `node-NODE.BORN.POD.log`, lines with their stamps, as the API gave them.

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

    def batches(self) -> Iterator[list[bytes]]:
        """Every whole line, some at a time."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            yield from whole_lines(iter(lambda: file.read(BLOCK), b""))


class ArchiveWriter:
    """Appends to an archived pod, while no other process does: the second one to come writes nothing."""

    def __init__(self, archived: ArchivedPod) -> None:
        archived.folder.mkdir(parents=True, exist_ok=True)
        self._file = archived.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            return
        whole = sum(len(line) + 1 for lines in archived.batches() for line in lines)
        self._file.truncate(whole)  # what a killed process left of a line

    def append(self, lines: list[bytes]) -> None:
        """Add lines; they are in the file when this returns."""
        if lines and not self._file.closed:
            self._file.write(b"".join(line + b"\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        """Let another process write."""
        self._file.close()


def archived_pods(folder: Path, node: int | None = None) -> list[ArchivedPod]:
    """What was kept, of one node or of all, by node and then by age."""
    found = []
    for path in folder.glob("node-*.log" if node is None else f"node-{node}.*.log"):
        match = re.fullmatch(r"node-(\d+)\.(\d+)\.(.+)\.log", path.name)
        if match:
            found.append(ArchivedPod(folder, int(match[1]), match[2], match[3]))
    return sorted(found, key=lambda pod: (pod.node, pod.born, pod.pod))
