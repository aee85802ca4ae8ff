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
    length = min([length, *(start for start, end in sample.images if start < length < end)])
    spans = [(start, min(end, length)) for start, end in sample.spans if start < length]
    return sample._replace(
        ids=sample.ids[:length],
        spans=spans,
        turn_ends=[end for end in sample.turn_ends if end <= length],
        images=tuple(image for image in sample.images if image[1] <= length),
    )


def _trainable(sample: Encoded, done: str) -> tuple[list[Encoded], str]:
    return ([sample], done) if sample.spans else ([], "dropped")


def _split(sample: Encoded, limit: int) -> list[Encoded]:
    """Pieces of `limit` tokens. The first token of each is not trained: it has nothing before it."""
    return [
        sample._replace(ids=ids, spans=[(1, len(ids))] if len(ids) > 1 else [], turn_ends=[])
        for ids in (sample.ids[start : start + limit] for start in range(0, len(sample.ids), limit))
    ]
