"""Lengths -> bins: best-fit decreasing, so that no sample is cut and rows are full. Pure and deterministic.

(Johnson 1974: the fullest bin that still takes the item, items from the longest to the shortest.)
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indexes of the samples in each bin; every index once, every bin's total at most `capacity`.

    Raises ValueError for a sample longer than `capacity`.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"sample {index} has {length} tokens, allowed: {capacity}")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([index])
            insort(room, (capacity - length, len(bins) - 1))
        else:
            free, number = room.pop(place)
            bins[number].append(index)
            insort(room, (free - length, number))
    return bins
