"""Lengths -> bins: best-fit decreasing, so that no sample is cut and rows are full. Pure and deterministic.

(Johnson 1974: the fullest bin that still takes the item, items from the longest to the shortest.)
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indexes of the samples in each bin; every index once, every bin's total at most `capacity`.

    Bins with equally much room are kept together, and there are at most `capacity` different rooms: a million samples
    take seconds. Raises ValueError for a sample longer than `capacity`.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, sorted
    sizes = np.asarray(lengths, dtype=np.int64)
    for index in np.argsort(-sizes, kind="stable").tolist():
        length = int(sizes[index])
        if length > capacity:
            raise ValueError(f"sample {index} has {length} tokens, allowed: {capacity}")
        place = bisect_left(rooms, length)
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        bins[number].append(index)
        if room - length not in by_room:
            by_room[room - length] = []
            insort(rooms, room - length)
        by_room[room - length].append(number)
    return bins
