"""Samples longer than max_length: what becomes of them, by the job's policy. Pure.

Documents (pre-training) are always split into pieces of max_length tokens, so that no token is lost: they have no
answer that could be cut in two.
"""

from typing import Literal

from trainer.data.encode import Encoded

Policy = Literal["keep_turns", "drop", "truncate", "error"]


class OverlongError(ValueError):
    """A sample longer than allowed, under the policy `error`."""


def fit(sample: Encoded, limit: int, policy: Policy, *, document: bool) -> tuple[list[Encoded], str]:
    """What is kept of the sample, and what was done to it: "" when it fits, else split, shortened, truncated or
    dropped. Raises OverlongError."""
    if len(sample.ids) <= limit:
        return [sample], ""
    if document:
        return _split(sample, limit), "split"
    if policy == "error":
        raise OverlongError(f"got a conversation of {len(sample.ids)} tokens, expected at most {limit}")
    if policy == "truncate":
        return _trainable(cut(sample, limit), "truncated")
    ends = [end for end in sample.turn_ends if end <= limit]
    if policy == "keep_turns" and ends:
        return _trainable(cut(sample, ends[-1]), "shortened")
    return [], "dropped"


def cut(sample: Encoded, length: int) -> Encoded:
    """Its first `length` tokens, fewer where that would cut an image. The text stays whole: it shows what was there."""
    length = min([length, *(image.start for image in sample.images if image.start < length < image.end)])
    spans = [(start, min(end, length)) for start, end in sample.spans if start < length]
    return sample._replace(
        ids=sample.ids[:length],
        spans=spans,
        turn_ends=[end for end in sample.turn_ends if end <= length],
        images=tuple(image for image in sample.images if image.end <= length),
    )


def _trainable(sample: Encoded, done: str) -> tuple[list[Encoded], str]:
    return ([sample], done) if sample.spans else ([], "dropped")


def _split(sample: Encoded, limit: int) -> list[Encoded]:
    """Pieces of `limit` tokens, fewer where an image would be cut; one that is longer than `limit` is left out. The
    first token of each is not trained: it has nothing before it."""
    pieces, start = [], 0
    while start < len(sample.ids):
        end = start + limit
        cut_image = next((image for image in sample.images if image.start < end < image.end), None)
        if cut_image and cut_image.start == start:
            start = cut_image.end
            continue
        end = cut_image.start if cut_image else end
        pieces.append(_piece(sample, start, end))
        start = end
    return pieces


def _piece(sample: Encoded, start: int, end: int) -> Encoded:
    spans = [(max(first, start + 1) - start, min(last, end) - start) for first, last in sample.spans]
    images = [image for image in sample.images if start <= image.start and image.end <= end]
    return sample._replace(
        ids=sample.ids[start:end],
        spans=[span for span in spans if span[0] < span[1]],
        turn_ends=[],
        images=tuple(image._replace(start=image.start - start, end=image.end - start) for image in images),
    )
