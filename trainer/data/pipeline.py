"""The pipeline in its order: sources -> map -> template -> encode -> length; what it did is counted.

One thread tokenises a batch, on all cores, while the other maps the next one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config.job import TrainConfig
from trainer.data.bad_rows import BadRows
from trainer.data.conversations import Mapped, read_conversations
from trainer.data.encode import Encoded, Encoder, Found
from trainer.data.message import RowError
from trainer.data.report import Report, note
from trainer.data.segment import Segment, render_text
from trainer.data.sources import Place
from trainer.data.store import SampleWriter
from trainer.data.templates import find_template
from trainer.data.truncation import OverlongError, fit
from trainer.errors import ConfigError
from trainer.vision.files import ImageFiles
from trainer.vision.form import find_form
from trainer.vision.splice import place_images

BATCH_ROWS, BATCH_CHARACTERS = 1000, 4_000_000


class Rendered(NamedTuple):
    """A conversation after the template step."""

    source: int
    place: Place
    segments: list[Segment]
    text: str
    document: bool
    images: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Conversations that are being tokenised."""

    rendered: list[Rendered]
    found: Future[list[Found]]


class Pipeline:
    """Runs once over all sources of a job. `watch(stage, place, value)` sees what the stages read, map, template and
    encode make of each row. Rejected rows go to the file `rejected`."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Any,
        rejected: Path,
        watch: Callable[[str, Place, Any], None] | None = None,
    ) -> None:
        self.config, self.data = config, config.data
        self.template = find_template(config.model.chat_template, tokenizer)
        self.form = find_form(config.model.path, tokenizer, config.model.revision)
        self.encoder = Encoder(tokenizer, self.template, self.form)
        self.report = Report()
        self.bad = BadRows(self.report, rejected, skip=self.data.bad_rows == "skip")
        self.watch = watch
        self._seen: set[int] = set()

    def run(self, writer: SampleWriter) -> Report:
        """Write every sample, in source order. Raises ConfigError when rows are bad or nothing is left."""
        for rendered, encoded in self._encoded(self._rendered()):
            for sample in self._fitted(rendered, encoded):
                writer.add(rendered.source, rendered.place, sample, rendered.images)
                self._count(sample)
        self.bad.raise_all()
        if not self.report.kept:
            raise ConfigError(
                f"data: none of the {self.report.read} rows can be trained on",
                "look at them: launch data JOB.yaml; perhaps max_length is too small or the format is another one",
            )
        return self.report

    def _rendered(self) -> Iterator[Rendered]:
        rows = read_conversations(self.config, self.report, self.bad)
        checked = ImageFiles(self.data.image_dir).checked(rows) if self.form else ((mapped, None) for mapped in rows)
        for mapped, problem in checked:
            try:
                if problem:
                    raise problem
                rendered = self._render(mapped)
            except RowError as error:
                self.bad.add(mapped.read, str(error))
                continue
            if self.watch:
                self.watch("read", rendered.place, mapped.read.row)
                self.watch("map", rendered.place, mapped.conversation)
                self.watch("template", rendered.place, rendered.segments)
            yield rendered

    def _render(self, mapped: Mapped) -> Rendered:
        conversation = mapped.conversation
        first, images = conversation.messages[0], conversation.images
        document = first.role == "text"
        segments = self.encoder.document(first.content) if document else self.template.render_row(conversation)
        unwritten = [] if document else self.template.unwritten(conversation, segments)
        if images and self.form is None:
            self.report.counts["unseen"] += 1
            images = ()
        segments = place_images(segments, len(images))
        self._note(mapped, unwritten)
        return Rendered(mapped.source, mapped.read.place, segments, render_text(segments), document, images)

    def _note(self, mapped: Mapped, unwritten: Sequence[str]) -> None:
        """Count what of a row is not trained as it stands there."""
        conversation = mapped.conversation
        if unwritten or conversation.notes or conversation.unread:
            place = f"{mapped.read.place.file}:{mapped.read.place.line}"
            note(self.report.notes, conversation.notes, place)
            note(self.report.unread, conversation.unread, place)
            note(self.report.unwritten, unwritten, place)

    def _encoded(self, conversations: Iterable[Rendered]) -> Iterator[tuple[Rendered, Encoded]]:
        waiting: deque[Batch] = deque()
        with ThreadPoolExecutor(1) as pool:
            for rendered in _batches(conversations):
                if self.bad:
                    continue  # only further problems are looked for
                texts, segments = [one.text for one in rendered], [one.segments for one in rendered]
                waiting.append(Batch(rendered, pool.submit(self.encoder.tokenize, texts, segments)))
                if len(waiting) > 1:
                    yield from self._read(waiting.popleft())
            while waiting and not self.bad:
                yield from self._read(waiting.popleft())

    def _read(self, batch: Batch) -> Iterator[tuple[Rendered, Encoded]]:
        for rendered, found in zip(batch.rendered, batch.found.result(), strict=True):
            yield rendered, self.encoder.read(rendered.text, rendered.segments, found)

    def _fitted(self, rendered: Rendered, encoded: Encoded) -> list[Encoded]:
        counts = self.report.counts
        if not encoded.spans:
            counts["untrained"] += 1
            return []
        known = len(self._seen)
        self._seen.add(hash((encoded.text, rendered.images)))
        counts["duplicates"] += len(self._seen) == known
        counts["escaped"] += encoded.escaped
        try:
            kept, done = fit(encoded, self.data.max_length, self.data.overlong, document=rendered.document)
        except OverlongError as error:
            place = rendered.place
            raise ConfigError(
                f"{place.file}:{place.line}: {error} (data.max_length)",
                f"it starts: {encoded.text[:80]!r}; choose another data.overlong, or a larger max_length",
            ) from error
        if done:
            counts[done] += 1
            self.report.lost_tokens += len(encoded.ids) - sum(len(one.ids) for one in kept)
        if self.watch:
            self.watch("encode", rendered.place, kept)
        return kept

    def _count(self, sample: Encoded) -> None:
        self.report.kept += 1
        self.report.tokens += len(sample.ids)
        self.report.trained_tokens += sum(end - start for start, end in sample.spans)


def _batches(conversations: Iterable[Rendered]) -> Iterator[list[Rendered]]:
    batch: list[Rendered] = []
    characters = 0
    for one in conversations:
        batch.append(one)
        characters += len(one.text)
        if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
