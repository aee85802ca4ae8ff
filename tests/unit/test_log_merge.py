"""Many streams at once: order, errors and memory."""

import itertools
import threading

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
    """Streams without an end, and how far they are ahead of their consumer."""

    def __init__(self):
        self.taken, self.consumed, self.ahead = 0, 0, 0
        self.lock, self.filled = threading.Lock(), threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            self.taken += 1
            self.ahead = max(self.ahead, self.taken - self.consumed)
            if self.taken >= mux.WAITING:
                self.filled.set()
        return self.taken


def test_a_slow_consumer_makes_the_readers_wait():
    endless, readers = Endless(), 4
    merged = merge([endless] * readers, threading.Event())
    for _ in range(10 * mux.WAITING):
        next(merged)
        assert endless.filled.wait(30)  # the consumer is the slow one
        endless.consumed += 1
    merged.close()
    assert endless.ahead <= mux.WAITING + 2 * readers


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
