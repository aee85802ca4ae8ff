"""Segments -> ids and trained spans. The whole conversation is tokenised at once and masked by landmarks
(trainer.data.span_finder) or character offsets, so the ids are those that a server computes for the same text.

Two things make a conversation take the second path, which tokenises the stretches between control tokens one by one:
content that holds the text of a control token (it stays ordinary text: nobody can close a turn from inside a message),
and a token that would straddle the start of an answer (a prompt ends exactly there at inference). Conversations with
images take it, too: the text before and after an image is tokenised by itself.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import compress
from operator import not_
from typing import Any, NamedTuple

from trainer.data.control import control_ids
from trainer.data.plain import PlainTokenizer
from trainer.data.segment import Segment, render_text
from trainer.data.span_finder import find_spans, has_control_tokens
from trainer.data.templates import Template
from trainer.errors import ConfigError
from trainer.vision.image_form import ImageForm

IGNORED = -100
MAX_LEADS = 1000


class ImageSpan(NamedTuple):
    """The ids that stand for an image itself, and its number among the conversation's."""

    start: int
    end: int
    number: int


class Encoded(NamedTuple):
    """One sample: `ids`, of which those in `spans` (start, end) are trained. `turn_ends` are the numbers of tokens
    after which it may be cut; `escaped`: its content held the text of a control token; `images`: where these are."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    turn_ends: list[int]
    escaped: bool = False
    images: tuple[ImageSpan, ...] = ()

    @property
    def labels(self) -> list[int]:
        """The ids where trained, else -100; as many as ids."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels


class Found(NamedTuple):
    """What the tokenizer made of a text, with character offsets or without."""

    result: Any
    offsets: bool


class Encoder:
    """Encodes conversations of one template with one fast tokenizer; `form`: how the model takes images."""

    def __init__(self, tokenizer: Any, template: Template, form: ImageForm | None = None) -> None:
        self.template, self.form = template, form
        self._fast = tokenizer.backend_tokenizer
        self._controls = control_ids(tokenizer, (*template.required, *template.stop))
        self._pattern = _control_pattern(self._controls)
        self._may_hold = _control_finder(self._controls, self._pattern)
        # Phi-3's take the blanks behind them
        self._strip = {token.content for token in tokenizer.added_tokens_decoder.values() if token.rstrip}
        self._leads: dict[tuple[str, str], list[int]] = {}
        self._ends = (_control(tokenizer.bos_token), _control(tokenizer.eos_token))
        missing = [token for token in template.required if token not in self._controls]
        if missing:
            raise ConfigError(
                f"model.chat_template: got {template.name}, but the tokenizer has no token {', '.join(missing)}",
                "leave it out: the template that belongs to the model is then chosen",
            )

    @cached_property
    def _plain(self) -> PlainTokenizer:
        return PlainTokenizer(self._fast, self._controls)  # takes seconds, and few data sets need it

    def document(self, text: str) -> list[Segment]:
        """A document for pre-training, between the tokenizer's own begin and end; all but the begin is trained."""
        begin, end = self._ends
        return [*begin, Segment(text, trained=True, content=True), *(part._replace(trained=True) for part in end)]

    def encode(self, conversations: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """Rendered conversations as samples, in their order."""
        texts = [render_text(segments) for segments in conversations]
        found = self.tokenize(texts, conversations)
        return [self.read(*parts) for parts in zip(texts, conversations, found, strict=True)]

    def tokenize(self, texts: Sequence[str], conversations: Sequence[Sequence[Segment]]) -> list[Found]:
        """The slow half of encode(): the tokenizer's own results, computed on all cores without Python's lock."""
        quick = [has_control_tokens(segments) for segments in conversations]
        results = {
            True: iter(self._fast.encode_batch_fast(list(compress(texts, quick)), add_special_tokens=False)),
            False: iter(self._fast.encode_batch(list(compress(texts, map(not_, quick))), add_special_tokens=False)),
        }
        return [Found(next(results[one]), offsets=not one) for one in quick]

    def read(self, text: str, segments: Sequence[Segment], found: Found) -> Encoded:
        """The quick half of encode(): one sample from what the tokenizer found in its text."""
        apart = [one for one in segments if one.content and (one.image or self._may_hold(one.text))]
        if apart:
            return self._stretches(text, segments, escaped=not all(one.image for one in apart))
        result = found.result
        if not found.offsets:
            ids = result.ids
            if places := find_spans(segments, ids, self._controls, self._lead_ids):
                return _sample(text, ids, *places)
            result = self._fast.encode(text, add_special_tokens=False)
        spans, turn_ends = _places(segments, result)
        if spans is None:
            return self._stretches(text, segments, escaped=False)
        return _sample(text, result.ids, spans, turn_ends)

    def _lead_ids(self, token: str, lead: str) -> list[int]:
        """Ids of a template's text behind a control token (or at the start); the templates have a handful of them."""
        known = self._leads.get((token, lead))
        if known is None:
            if len(self._leads) > MAX_LEADS:
                self._leads.clear()
            ids = self._fast.encode(token + lead, add_special_tokens=False).ids
            known = self._leads[token, lead] = ids[1:] if token else ids
        return known

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of a prompt for generation."""
        return self.encode([segments])[0].ids

    def _stretches(self, text: str, segments: Sequence[Segment], *, escaped: bool) -> Encoded:
        ids: list[int] = []
        spans, turn_ends = [], []
        images: list[ImageSpan] = []
        before: Segment | None = None
        for stretch in _joined(part for segment in segments for part in self._parts(segment)):
            start = len(ids)
            ids += self._ids(stretch, before)
            before = stretch
            if stretch.trained:
                spans.append((start, len(ids)))
            if stretch.image:
                assert self.form
                first = start + len(self.form.tokens.before)
                images.append(ImageSpan(first, first + self.form.tokens.number, len(images)))
            if stretch.ends_turn:
                turn_ends.append(len(ids))
        return _sample(text, ids, spans, turn_ends, escaped)._replace(images=tuple(images))

    def _ids(self, stretch: Segment, before: Segment | None) -> list[int]:
        if stretch.control:
            return [self._controls[stretch.text]]
        if stretch.image:
            assert self.form
            fill, number, before_image, after_image = self.form.tokens
            return [*before_image, *[fill] * number, *after_image]
        if before is None:
            return self._plain.ids(stretch.text, "nothing")
        text = stretch.text.lstrip() if before.control and before.text in self._strip else stretch.text
        return self._plain.ids(text, "token" if before.control or before.image else "text")

    def _parts(self, segment: Segment) -> Iterator[Segment]:
        """A segment as the tokenizer would see it on the first path: a control token that stands in a template's text
        (Zephyr's <|user|>, where it is one) is a token, and one that the tokenizer does not know is text."""
        if segment.control and segment.text not in self._controls:
            yield segment._replace(control=False)
        elif segment.control or segment.content or not self._may_hold(segment.text):
            yield segment
        else:
            for part in filter(None, self._pattern.split(segment.text)):
                yield segment._replace(text=part, control=part in self._controls)


def _control(token: str | None) -> list[Segment]:
    return [Segment(token, control=True)] if token else []


def _control_pattern(controls: Iterable[str]) -> re.Pattern[str]:
    """Finds control tokens in a text; `split` keeps them."""
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")


def _control_finder(controls: Iterable[str], pattern: re.Pattern[str]) -> Callable[[str], object]:
    """Says whether a text holds the text of a control token; most texts lack even its first letter."""
    signs = sorted({token[0] for token in controls})
    if len(signs) > 4:
        return pattern.search
    return lambda text: any(sign in text for sign in signs) and pattern.search(text)


def _places(segments: Sequence[Segment], found: Any) -> tuple[list[tuple[int, int]] | None, list[int]]:
    """Trained spans and turn ends in tokens; no spans (None) when a token straddles the start of one, or a place has
    no token."""
    spans: list[tuple[int, int]] = []
    turn_ends: list[int] = []
    place, count = 0, len(found)
    begin: int | None = None
    for segment in segments:
        if segment.trained and segment.text and begin is None:
            begin = _token_at(found, place)
            if begin is None:
                return None, []
        elif not segment.trained and begin is not None:
            end = _first_from(found, place, count)
            if end is None:
                return None, []
            spans.append((begin, end))
            begin = None
        place += len(segment.text)
        if segment.ends_turn:
            turn_end = _first_from(found, place, count)
            if turn_end is None:
                return None, []
            turn_ends.append(turn_end)
    if begin is not None:
        spans.append((begin, count))
    return spans, turn_ends


def _token_at(found: Any, place: int) -> int | None:
    """The token that begins exactly at the character `place`, if one does."""
    token: int | None = found.char_to_token(place)
    return token if token is not None and found.token_to_chars(token)[0] == place else None


def _first_from(found: Any, place: int, count: int) -> int | None:
    """The first token that does not begin before the character `place`; the number of tokens at the end."""
    token: int | None = found.char_to_token(place)
    if token is None:
        last = found.token_to_chars(count - 1) if count else None
        return count if last is None or last[1] <= place else None
    return token if found.token_to_chars(token)[0] >= place else token + 1


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbouring ordinary text of one kind put together, as the tokenizer would see it."""
    stretches: list[Segment] = []
    for segment in segments:
        last = stretches[-1] if stretches else None
        apart = segment.control or segment.image
        if last and not apart and not last.control and not last.image and last.trained == segment.trained:
            stretches[-1] = last._replace(text=last.text + segment.text, ends_turn=segment.ends_turn)
        elif segment.text or segment.image:
            stretches.append(segment)
    return stretches


def _sample(
    text: str, ids: list[int], spans: list[tuple[int, int]], turn_ends: list[int], escaped: bool = False
) -> Encoded:
    """The first token has nothing before it to be predicted from; in a packed row that would be another sample."""
    if spans and spans[0][0] == 0:
        spans[0] = (1, spans[0][1])
    return Encoded(text, ids, [span for span in spans if span[0] < span[1]], turn_ends, escaped)
