"""Reading pods' logs through everything that goes wrong with connections, against a log kept in memory that behaves as
a cluster was seen to: it resumes at whole seconds, cuts lines anywhere, and ends streams that are not over."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.kubernetes.logs import source as timing
from launcher.backends.kubernetes.logs.archive import ArchivedPod, ArchiveWriter, archived_pods
from launcher.backends.kubernetes.logs.pods import read_logs
from launcher.backends.kubernetes.logs.source import GoneError, Pod, Source, Unreachable
from launcher.backends.kubernetes.logs.stamped import Position, Splitter, log_line
from launcher.logs.line import LogQuery


def stamp(moment: int) -> str:
    """The stamp of a moment in units of a tenth of a second."""
    return f"2026-11-24T11:{moment // 600:02}:{moment // 10 % 60:02}.{moment % 10}00000000Z"


class Script:
    """A cluster whose pods have fixed logs. Each request to stream takes the next of `cuts`: after that many bytes
    the stream breaks (an int), ends early (a negative int) or is served whole (None, also when none are left). Before
    it, the node throws away as many lines as the next of `rotations` says."""

    def __init__(self, logs: dict[Pod, list[tuple[int, str]]], cuts: list[int | None] | None = None) -> None:
        self.logs = logs
        self.cuts = iter(cuts or [])
        self.ends: Iterator[bool] = iter([])
        self.asked: list[str | None] = []
        self.deleted: set[str] = set()
        self.rotations: Iterator[int] = iter([])
        self.thrown_away = 0

    def pods(self) -> tuple[list[Pod], bool]:
        return [pod for pod in self.logs if pod.name not in self.deleted], True

    def has_ended(self, pod: Pod) -> bool | None:
        return None if pod.name in self.deleted else next(self.ends, True)

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        self.asked.append(since)
        if pod.name in self.deleted:
            raise GoneError(pod.name)
        self.thrown_away += next(self.rotations, 0)
        there = self.logs[pod][self.thrown_away:]
        kept = [(when, text) for when, text in there if since is None or stamp(when)[:19] >= since[:19]]
        data = "".join(f"{stamp(when)} {text}\n" for when, text in kept).encode()
        cut = next(self.cuts, None)
        end = len(data) if cut is None else abs(cut)
        yield from (data[start:min(start + 7, end)] for start in range(0, end, 7))
        if cut is not None and cut >= 0:
            raise Unreachable(ConnectionResetError("reset"))

    def copied(self, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        return None

    def close(self) -> None:
        pass


def running(name: str = "p") -> Pod:
    """A pod of node 0 that runs when it is listed."""
    return Pod(0, name, "2026-11-24T11:00:00Z", started=True, ended=False)


def pod(node: int = 0, name: str = "p", born: str = "2026-11-24T11:00:00Z") -> Pod:
    """A pod that has run and ended."""
    return Pod(node, name, born, started=True, ended=True)


def read(source: Script, folder, nodes=(0,), **options):
    """All lines as (node, text)."""
    return [(line.node, line.text) for batch in read_batches(source, folder, nodes, **options) for line in batch]


def read_batches(source: Source, folder, nodes=(0,), **options):
    """What the reader gives."""
    query = LogQuery(**{"follow": True, **options})
    return read_logs(source, folder, list(nodes), query, stop=threading.Event())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Nothing here depends on how long a pause is."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LOOK_S"):
        monkeypatch.setattr(timing, name, 0.0)


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
    source = Script({running(): lines}, cuts)
    source.ends = iter([False] * len(cuts))
    assert read(source, tmp_path_factory.mktemp("logs")) == [(0, text) for _, text in lines]


def test_the_archive_is_where_the_next_reading_goes_on(tmp_path):
    lines = [(0, "one"), (10, "two"), (25, "three")]
    assert read(Script({pod(): lines}), tmp_path, follow=False) == [(0, "one"), (0, "two"), (0, "three")]
    again = Script({pod(): [*lines, (26, "four")]})
    assert read(again, tmp_path, follow=False)[-2:] == [(0, "three"), (0, "four")]
    assert set(again.asked) == {"2026-11-24T11:00:01Z"}  # from a second before the last line


@given(st.lists(st.integers(1, 30), max_size=40), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9))))
def test_whatever_was_rotated_away_is_told_as_a_gap(tmp_path_factory, steps, troubles):
    lines = [(moment, str(number)) for number, moment in enumerate(itertools.accumulate(steps))]
    source = Script({running(): lines}, [cut for cut, _ in troubles])
    source.rotations = iter([0, *(count for _, count in troubles)])  # nobody can tell before the first reading
    source.ends = iter([False] * len(troubles))
    folder = tmp_path_factory.mktemp("logs")
    found = [line for batch in read_batches(source, folder) for line in batch]
    numbers = [None if line.gap else int(line.text) for line in found]
    given = [number for number in numbers if number is not None]
    assert given == sorted(set(given))
    assert numbers.count(None) <= sum(count > 0 for _, count in troubles)
    for before, after in itertools.pairwise(given):
        between = numbers[numbers.index(before) + 1:numbers.index(after)]
        assert after == before + 1 or between == [None]
    if given and given[-1] < len(lines) - 1:
        assert numbers[-1] is None
    source.deleted = {"p"}
    assert [line for batch in read_batches(source, folder) for line in batch] == found  # the archive keeps the gaps


def test_a_gap_names_both_times(tmp_path):
    source = Script({pod(): [(0, "had"), (100, "thrown away"), (200, "came")]}, [40])
    source.rotations = iter([0, 2])
    assert read(source, tmp_path) == [
        (0, "had"), (0, f"launch: lines may be missing between {stamp(0)} and {stamp(200)}: the node rotated its log "
                        "while nobody read it"), (0, "came")]


def test_a_pod_deleted_before_it_was_read_to_the_end_is_told(tmp_path):
    class Deleted(Script):
        def has_ended(self, pod):
            self.deleted.add(pod.name)

    source = Deleted({running(): [(0, "one"), (10, "two")]}, [-40])
    text = f"launch: lines may be missing after {stamp(0)}: its pod was deleted before it was read to the end"
    assert read(source, tmp_path) == [(0, "one"), (0, text)]
    assert read(source, tmp_path) == [(0, "one"), (0, text)]
    assert read(Script({running(): [(0, "one")]}), tmp_path / "other", follow=False) == [(0, "one")]


def test_one_node_that_does_not_answer_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "QUICK_GIVE_UP_S", 0.0)

    class OneLost(Script):
        def stream(self, pod, since, *, follow):
            if pod.node == 0:
                raise Unreachable(OSError("dial tcp: i/o timeout"), pod_only=True)
            return super().stream(pod, since, follow=follow)

    found = read(OneLost({pod(): [], pod(1, "q"): [(0, "here")]}), tmp_path, nodes=(0, 1), follow=False)
    assert found == [(0, "launch: lines may be missing after 2026-11-24T11:00:00Z: its node does not return them: dial "
                         "tcp: i/o timeout"), (1, "here")]


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
    assert sorted(read(source, tmp_path, nodes=(0, 1), tail=3)) == [(0, "47"), (0, "48"), (0, "49"), (1, "only")]


def test_error_text_with_status_200_is_no_line(tmp_path):
    class Broken(Script):
        def stream(self, pod, since, *, follow):
            yield from super().stream(pod, since, follow=follow)
            yield b'failed to try resolving symlinks in path "/var/log/pods": no such file\n'

    assert read(Broken({pod(): [(0, "line")]}), tmp_path) == [(0, "line")]


def test_error_text_instead_of_a_log_is_asked_for_again(tmp_path):
    class Leaving(Script):
        def stream(self, pod, since, *, follow):
            if len(self.asked) < 3:
                self.asked.append(since)
                return iter([b"unable to retrieve container logs for containerd://0"])
            return super().stream(pod, since, follow=follow)

    assert read(Leaving({pod(): [(0, "line")]}), tmp_path) == [(0, "line")]


def test_a_last_line_without_line_end_is_kept(tmp_path):
    class Unended(Script):
        def stream(self, pod, since, *, follow):
            return iter([b"".join(super().stream(pod, since, follow=follow)).removesuffix(b"\n")])

    assert read(Unended({pod(): [(0, "a"), (1, "b")]}), tmp_path) == [(0, "a"), (0, "b")]


def test_a_log_that_a_proxy_ended_early_is_asked_for_again(tmp_path):
    lines = [(moment, str(moment)) for moment in range(30)]
    source = Script({pod(): lines}, [-100, -350, -500])
    assert read(source, tmp_path, follow=False) == [(0, text) for _, text in lines]


@pytest.mark.parametrize(("minutes", "found"), [(15, [(0, "line")]), (17, None)])
def test_a_cluster_may_be_away_for_a_quarter_of_an_hour(tmp_path, monkeypatch, minutes, found):
    """Each failed request takes a minute, of a clock that only requests move."""
    class Away(Script):
        minute = 0

        def stream(self, pod, since, *, follow):
            self.minute += 1
            if self.minute <= minutes:
                raise Unreachable(ConnectionRefusedError("refused"))
            return super().stream(pod, since, follow=follow)

    source = Away({pod(): [(0, "line")]})
    monkeypatch.setattr(timing.time, "monotonic", lambda: 60.0 * source.minute)
    if found:
        assert read(source, tmp_path) == found
    else:
        with pytest.raises(ConnectionRefusedError):
            read(source, tmp_path)


def test_a_throttled_reader_waits_as_long_as_it_is_told(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda event, seconds=None: waits.append(seconds))

    class Throttled(Script):
        def pods(self):
            if not waits:
                raise Unreachable(OSError("429"), wait_s=7.0)
            return super().pods()

    assert read(Throttled({pod(): [(0, "line")]}), tmp_path, follow=False) == [(0, "line")]
    assert waits[0] == 7.0


def test_a_pod_that_cannot_be_reached_ends_in_its_own_error(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "QUICK_GIVE_UP_S", 0.0)
    with pytest.raises(ConnectionResetError):
        read(Script({pod(): [(0, "line")]}, [0] * 1000), tmp_path, follow=False)


def test_carriage_returns_leave_the_last_drawing():
    assert log_line(3, f"{stamp(0)} 10%\r50%\r100%\r".encode()).text == "100%"
    assert log_line(3, f"{stamp(0)} ".encode()).text == ""
    assert log_line(3, stamp(0).encode()).stamp == stamp(0)


def test_an_unfinished_line_is_left_for_the_next_reading():
    splitter = Splitter()
    assert list(splitter.lines([f"{stamp(0)} wh".encode(), b"ole\n", f"{stamp(1)} pa".encode()])) == [
        [f"{stamp(0)} whole".encode()]]
    assert (splitter.rest, splitter.unstamped) == (f"{stamp(1)} pa".encode(), b"")


def test_position_takes_stamps_that_run_backwards_within_the_second():
    position = Position()
    lines = [f"{stamp(moment)} x".encode() for moment in (11, 13, 12, 12, 14)]
    assert position.take(lines) == (None, lines)
    assert position.resume() == "2026-11-24T11:00:00Z"
    later = [f"{stamp(12)} late".encode(), f"{stamp(31)} x".encode()]
    assert position.take(lines[:2]) == (None, [])
    assert position.take([*lines[2:], *later]) == (None, later)


def test_second_writer_of_an_archive_writes_nothing(tmp_path):
    archived = ArchivedPod(tmp_path, 4, "2026-11-24T11:00:00Z", "job-4-abcde")
    first, second = ArchiveWriter(archived), ArchiveWriter(archived)
    line = f"{stamp(0)} x".encode()
    first.append([line])
    second.append([line])
    first.close()
    assert list(archived.batches()) == [[log_line(4, line)]]
    assert archived_pods(tmp_path, 4) == [ArchivedPod(tmp_path, 4, "20261124110000", "job-4-abcde")]
    assert archived_pods(tmp_path, 1) == []


def test_half_a_line_left_by_a_killed_process_is_replaced(tmp_path):
    archived = ArchivedPod(tmp_path, 0, "2026-11-24T11:00:00Z", "p")
    whole, half = f"{stamp(0)} x\n", f"{stamp(1)} ha"
    archived.path.write_text(whole + half)
    assert read(Script({pod(): [(0, "x"), (1, "half")]}), tmp_path) == [(0, "x"), (0, "half")]
    assert archived.path.read_text() == whole + half + "lf\n"
