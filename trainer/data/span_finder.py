"""Trained spans among ids without character offsets, which cost the tokenizer a third of its speed. Pure.

Control tokens are landmarks: they are found by their ids, which no content can make. An answer begins right behind one,
or behind a short text of the template ("assistant" and a line end) whose own ids are known: if these stand there, the
answer's tokens begin behind them, since an id is always the same text.
"""

from collections.abc import Callable, Sequence

from trainer.data.segment import Segment

MAX_LEAD = 64  # characters

Spans = tuple[list[tuple[int, int]], list[int]]


def has_control_tokens(segments: Sequence[Segment]) -> bool:
    """Whether every answer comes behind a control token and at most a text of the template."""
    after_content = False
    for segment in segments:
        if segment.control:
            after_content = False
        elif segment.trained:
            if after_content:
                return False
        elif segment.content:
            after_content = True
    return True


def find_spans(
    segments: Sequence[Segment], ids: list[int], controls: dict[str, int], lead_ids: Callable[[str, str], list[int]]
) -> Spans | None:
    """Trained spans and turn ends in tokens, or None when a place is not where these landmarks could show it.
    `lead_ids(token, text)`: the ids of a text right behind a control token."""
    walk = _Walk(ids, controls, lead_ids)
    for segment in segments:
        # a template marks tokens that the model writes as text, too (Qwen's <tool_call>): content can make these
        seen = walk.control(segment) if segment.control and segment.text in controls else walk.ordinary(segment)
        if not seen:
            return None
    if walk.begin >= 0:
        walk.spans.append((walk.begin, len(ids)))
    return walk.spans, walk.turn_ends


class _Walk:
    """Along the segments: `place` is the number of tokens up to the last control token, `token` that one, `lead` what
    stands behind it, `begin` where a trained span began (-1 outside)."""

    def __init__(self, ids: list[int], controls: dict[str, int], lead_ids: Callable[[str, str], list[int]]) -> None:
        self.ids, self.controls, self.lead_ids = ids, controls, lead_ids
        self.begin, self.place, self.token, self.lead = -1, 0, "", ""
        self.spans: list[tuple[int, int]] = []
        self.turn_ends: list[int] = []

    def control(self, segment: Segment) -> bool:
        try:
            found = self.ids.index(self.controls[segment.text], self.place)
        except ValueError:
            return False
        if segment.trained and self.begin < 0:
            self.begin = found
        elif self.begin >= 0 and not segment.trained:
            self.spans.append((self.begin, found))
            self.begin = -1
        self.place, self.token, self.lead = found + 1, segment.text, ""
        if segment.ends_turn:
            self.turn_ends.append(self.place)
        return True

    def ordinary(self, segment: Segment) -> bool:
        text, trained = segment.text, segment.trained
        if segment.ends_turn:
            return False
        if not text or (trained and self.begin >= 0):
            self.lead += text
            return True
        if len(self.lead) > MAX_LEAD and trained:
            return False
        if trained:
            behind = self.lead_ids(self.token, self.lead) if self.lead else []
            self.begin = self.place + len(behind)
            seen = self.ids[self.place : self.begin] == behind
        else:
            seen = self.begin < 0 or not self.lead  # a span that ends elsewhere than behind a control token
            if self.begin >= 0:
                self.spans.append((self.begin, self.place))
                self.begin = -1
        self.lead += text
        return seen
