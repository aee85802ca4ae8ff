"""Many streams at once: order, errors, memory, and how many files may be open."""

import itertools
import resource
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs import mux
from launcher.logs.mux import merge


@given(st.lists(st.lists(st.integers(), max_size=30), max_size=6))
def test_each_stream_keeps_its_order_and_loses_nothing(streams):
    named = [[(number, item) for item in stream] for number, stream in enumerate(streams)]
    found = list(merge([iter(stream) for stream in named], threading.Event()))
    assert [[pair for pair in found if pair[0] == number] for number in range(len(streams))] == named


class Endless:
    """A stream that counts what is taken from it."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return self.taken


def test_a_slow_consumer_makes_the_readers_wait():
    streams = [Endless() for _ in range(4)]
    merged = merge(streams, threading.Event())
    next(merged)
    deadline, before = time.monotonic() + 30, -1
    while before != (before := sum(stream.taken for stream in streams)):
        assert time.monotonic() < deadline, f"{before} taken, and still more"
        time.sleep(0.3)
    merged.close()
    assert before <= mux.WAITING + 2 * len(streams)


def test_an_error_of_one_stream_ends_all():
    stop = threading.Event()

    def broken():
        yield 1
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        list(merge([itertools.count(), broken()], stop))
    assert stop.is_set()


def test_stop_ends_it_though_a_reader_hangs():
    stop, never = threading.Event(), threading.Event()

    def hangs():
        yield 1
        never.wait()

    merged = merge([hangs()], stop)
    assert next(merged) == 1
    stop.set()
    assert list(merged) == []
    never.set()


MANY = """
import resource, sys, threading
from pathlib import Path
sys.path.insert(0, "tests/unit")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from launcher.errors import BackendError
from launcher.logs.line import LogQuery
from launcher.backends.kubernetes.logs.pods import read_logs
from test_pod_logs import Script, pod
pods = {pod(node, f"p{node}"): [(0, "line")] for node in range(450)}
try:
    found = read_logs(Script(pods), Path(sys.argv[3]), list(range(450)), LogQuery(follow=True), stop=threading.Event())
    print(sum(len(batch) for batch in found))
except BackendError as error:
    print(error.message)
"""


@pytest.mark.parametrize(("hard", "printed"), [
    (1024, "450"), (512, "reading so many nodes at once takes 964 open files, and 512 are allowed here")])
def test_more_nodes_than_files_may_be_open_at_first(tmp_path, pytestconfig, hard, printed):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 1024
    done = subprocess.run([sys.executable, "-c", MANY, "256", str(hard), str(tmp_path)], capture_output=True, text=True,
                          cwd=pytestconfig.rootpath)
    assert done.stdout.strip() == printed, done.stderr
