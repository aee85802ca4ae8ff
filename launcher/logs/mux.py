"""Many streams, each read by a thread of its own, to one consumer. Each stream keeps its order."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WAITING = 100  # batches (64 KiB at most) that may wait for a slow consumer before the readers pause
LOOK_S = 0.5


class _End:
    """A stream is over, or failed with `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def merge(streams: Sequence[Iterator[T]], stop: threading.Event) -> Iterator[T]:
    """What the streams yield, as it comes. The first error of any stream is raised here.

    `stop` is set when this ends, however it ends: streams that wait should look at it. Set by somebody else, it ends
    this.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(WAITING)
    for stream in streams:
        threading.Thread(target=_read, args=(stream, waiting, stop), daemon=True).start()
    running = len(streams)
    try:
        while running:
            try:
                item = waiting.get(timeout=LOOK_S)
            except queue.Empty:
                if stop.is_set():  # readers may hang in a read that nobody waits for any more
                    return
                continue
            if not isinstance(item, _End):
                yield item
                continue
            if item.error:
                raise item.error
            running -= 1
    finally:
        stop.set()


def _read(stream: Iterator[T], waiting: "queue.Queue[T | _End]", stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in stream:
            if not _put(waiting, item, stop):
                return
    except BaseException as caught:  # raised again by the consumer
        error = caught
    _put(waiting, _End(error), stop)


def _put(waiting: "queue.Queue[T | _End]", item: "T | _End", stop: threading.Event) -> bool:
    """Wait for room; False when nobody reads any more."""
    while not stop.is_set():
        try:
            waiting.put(item, timeout=LOOK_S)
        except queue.Full:
            continue
        return True
    return False
