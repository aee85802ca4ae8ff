"""Reading pods' logs through everything that goes wrong with connections, against a log kept in memory that behaves as
a cluster was seen to: it resumes at whole seconds, cuts lines anywhere, and ends streams that are not over."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs import pods as reading
from launcher.logs.line import LogQuery
from launcher.logs.pods import GoneError, Pod, Unreachable, read_logs
from launcher.logs.stamped import ArchivedPod, ArchiveWriter, Position, archived_pods, log_line, whole_lines


def stamp(moment: int) -> str:
    """The stamp of a moment in units of a tenth of a second."""
    return f"2026-11-24T11:{moment // 600:02}:{moment // 10 % 60:02}.{moment % 10}00000000Z"


class Script:
    """A cluster whose pods have fixed logs. Each request to stream takes the next of `cuts`: after that many bytes
    the stream breaks (an int), ends early (a negative int) or is served whole (None, also when none are left)."""

    def __init__(self, logs: dict[Pod, list[tuple[int, str]]], cuts: list[int | None] | None = None) -> None:
        self.logs = logs
        self.cuts = iter(cuts or [])
        self.ends: Iterator[bool] = iter([])
        self.asked: list[str | None] = []
        self.deleted: set[str] = set()

    def pods(self) -> tuple[list[Pod], bool]:
        return [pod for pod in self.logs if pod.name not in self.deleted], True

    def has_ended(self, pod: Pod) -> bool | None:
        return None if pod.name in self.deleted else next(self.ends, True)

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        self.asked.append(since)
        if pod.name in self.deleted:
            raise GoneError(pod.name)
        kept = [(when, text) for when, text in self.logs[pod] if since is None or stamp(when)[:19] >= since[:19]]
        data = "".join(f"{stamp(when)} {text}\n" for when, text in kept).encode()
        cut = next(self.cuts, None)
        end = len(data) if cut is None else abs(cut)
        yield from (data[start:min(start + 7, end)] for start in range(0, end, 7))
        if cut is not None and cut >= 0:
            raise Unreachable(ConnectionResetError("reset"))


def pod(node: int = 0, name: str = "p", born: str = "2026-11-24T11:00:00Z") -> Pod:
    """A pod that has run and ended."""
    return Pod(node, name, born, started=True, ended=True)


def read(source: Script, folder, nodes=(0,), **options):
    """All lines as (node, text)."""
    query = LogQuery(**{"follow": True, **options})
    batches = read_logs(source, folder, list(nodes), query, stop=threading.Event())
    return [(line.node, line.text) for batch in batches for line in batch]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Nothing here depends on how long a pause is."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LOOK_S"):
        monkeypatch.setattr(reading, name, 0.0)


LINES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "same", "é界", "a b"])), max_size=25)


def moments(steps: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines with stamps that grow, stand still within a second, and are often equal."""
    when = itertools.accumulate((step for step, _ in steps), initial=0)
    return [(moment, text) for moment, (_, text) in zip(when, steps, strict=False)]


@given(LINES, st.lists(st.integers(0, 300), max_size=8))
def test_nothing_is_lost_or_doubled_however_streams_break(tmp_path_factory, steps, cuts):
    lines = moments(steps)
    want = [(0, text) for _, text in lines]
    folder = tmp_path_factory.mktemp("logs")
    assert read(Script({pod(): lines}, cuts), folder) == want
    assert read(Script({pod(): lines}), folder) == want


@given(LINES, st.lists(st.integers(-300, 300), max_size=8))
def test_the_end_of_a_stream_is_not_the_end_of_a_running_pod(tmp_path_factory, steps, cuts):
    lines = moments(steps)
    source = Script({Pod(0, "p", "2026-11-24T11:00:00Z", started=True, ended=False): lines}, cuts)
    source.ends = iter([False] * len(cuts))
    assert read(source, tmp_path_factory.mktemp("logs")) == [(0, text) for _, text in lines]


def test_the_archive_is_where_the_next_reading_goes_on(tmp_path):
    lines = [(0, "one"), (10, "two"), (25, "three")]
    assert read(Script({pod(): lines}), tmp_path, follow=False) == [(0, "one"), (0, "two"), (0, "three")]
    again = Script({pod(): [*lines, (26, "four")]})
    assert read(again, tmp_path, follow=False)[-2:] == [(0, "three"), (0, "four")]
    assert again.asked == ["2026-11-24T11:00:02Z"]


def test_logs_read_after_the_pods_are_gone(tmp_path):
    first, second = pod(name="first"), pod(name="second", born="2026-11-24T11:09:00Z")
    source = Script({first: [(0, "a"), (1, "b")], second: [(5400, "c")]})
    want = [(0, "a"), (0, "b"), (0, "c")]
    assert read(source, tmp_path) == want
    source.deleted = {"first"}
    assert read(source, tmp_path) == want
    source.deleted = {"first", "second"}
    assert read(source, tmp_path) == want
    assert read(source, tmp_path, tail=2, follow=False) == want[-2:]


def test_tail_then_follow_gives_the_last_lines_once(tmp_path):
    source = Script({pod(): [(moment, str(moment)) for moment in range(50)], pod(1, "q"): [(0, "only")]})
    assert read(source, tmp_path, nodes=(0, 1), tail=3) == [(0, "47"), (0, "48"), (0, "49"), (1, "only")]


def test_error_text_with_status_200_is_no_line(tmp_path):
    class Broken(Script):
        def stream(self, pod, since, *, follow):
            yield from super().stream(pod, since, follow=follow)
            yield b'failed to try resolving symlinks in path "/var/log/pods": no such file\n'

    assert read(Broken({pod(): [(0, "line")]}), tmp_path) == [(0, "line")]


def test_a_pod_that_cannot_be_reached_ends_in_its_own_error(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE_S", 0.0)
    with pytest.raises(ConnectionResetError):
        read(Script({pod(): [(0, "line")]}, [0] * 1000), tmp_path, follow=False)


def test_carriage_returns_leave_the_last_drawing():
    assert log_line(3, f"{stamp(0)} 10%\r50%\r100%\r".encode()).text == "100%"
    assert log_line(3, f"{stamp(0)} ".encode()).text == ""
    assert log_line(3, stamp(0).encode()).stamp == stamp(0)


def test_an_unfinished_line_is_left_for_the_next_reading():
    assert list(whole_lines([f"{stamp(0)} wh".encode(), b"ole\n", f"{stamp(1)} pa".encode()])) == [
        [], [f"{stamp(0)} whole".encode()], []]


def test_position_takes_stamps_that_run_backwards_within_the_second():
    position = Position()
    lines = [f"{stamp(moment)} x".encode() for moment in (11, 13, 12, 12, 14)]
    assert all(position.is_new(line) for line in lines)
    assert position.resume() == "2026-11-24T11:00:01Z"
    later = [*lines, f"{stamp(12)} late".encode(), f"{stamp(31)} x".encode()]
    assert [position.is_new(line) for line in later] == [False] * 5 + [True] * 2


def test_second_writer_of_an_archive_writes_nothing(tmp_path):
    archived = ArchivedPod(tmp_path, 4, "2026-11-24T11:00:00Z", "job-4-abcde")
    first, second = ArchiveWriter(archived), ArchiveWriter(archived)
    line = f"{stamp(0)} x".encode()
    first.append([line])
    second.append([line])
    first.close()
    assert list(archived.batches()) == [[line]]
    assert archived_pods(tmp_path) == [ArchivedPod(tmp_path, 4, "20261124110000", "job-4-abcde")]


def test_half_a_line_left_by_a_killed_process_is_replaced(tmp_path):
    archived = ArchivedPod(tmp_path, 0, "2026-11-24T11:00:00Z", "p")
    whole, half = f"{stamp(0)} x\n", f"{stamp(1)} ha"
    archived.path.write_text(whole + half)
    assert read(Script({pod(): [(0, "x"), (1, "half")]}), tmp_path) == [(0, "x"), (0, "half")]
    assert archived.path.read_text() == whole + half + "lf\n"
