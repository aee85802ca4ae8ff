"""The whole pipeline in its order: sources -> map -> template -> encode -> length -> pack; and what it did, counted."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.config import TrainConfig
from trainer.data.encode import IGNORED, Encoded, Encoder
from trainer.data.maps import Message, RowError, map_row
from trainer.data.pack import pack_lengths
from trainer.data.sources import read_rows
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError

BATCH = 1000
Sample = dict[str, list[int]]


@dataclass(frozen=True)
class Row:
    """What the model gets as one sequence. `number` is its place in the training set, the same after every restart;
    `origins` say where each sample was read."""

    number: int
    samples: list[Sample]
    origins: list[str]


@dataclass
class Report:
    """What became of the rows; printed before training and by `launch data`."""

    read: int = 0
    without_answer: int = 0
    escaped: int = 0
    shortened: int = 0
    too_long: int = 0
    kept: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self, max_length: int, packed: bool) -> list[str]:
        """For people."""
        share = self.trained_tokens / self.tokens if self.tokens else 0
        lines = [
            f"data: {self.read} rows read, {self.kept} conversations kept, {self.tokens} tokens, "
            f"{share:.0%} of them trained"
        ]
        for count, what in (
            (self.without_answer, "rows without an answer left out"),
            (self.escaped, "conversations hold the text of a special token; it stays ordinary text"),
            (self.shortened, f"conversations longer than {max_length} tokens lost trailing turns"),
            (self.too_long, f"conversations longer than {max_length} tokens left out"),
        ):
            if count:
                lines.append(f"data: {count} {what}")
        if packed:
            fill = self.tokens / (self.rows * max_length) if self.rows else 0
            lines.append(f"data: packed into {self.rows} rows of {max_length} tokens, {fill:.1%} full, no sample cut")
        return lines


def encode_dataset(config: TrainConfig, tokenizer: Any) -> tuple[list[Encoded], Report]:
    """Every conversation of the job, encoded, in source order. Raises ConfigError when nothing is left."""
    report = Report()
    encoder = Encoder(tokenizer, TEMPLATES[config.model.chat_template])
    samples: list[Encoded] = []
    conversations = _conversations(config, report)
    while batch := list(itertools.islice(conversations, BATCH)):
        encoded = encoder.encode([encoder.template.render(messages) for _, messages in batch])
        samples += [
            replace(kept, origin=where)
            for (where, _), sample in zip(batch, encoded, strict=True)
            if (kept := _fitted(sample, config, report))
        ]
    if not samples:
        raise ConfigError(
            f"data: none of the {report.read} rows can be trained on",
            "look at them: launch data JOB.yaml; perhaps max_length is too small or the format is another one",
        )
    report.kept = len(samples)
    report.tokens = sum(len(sample.input_ids) for sample in samples)
    report.trained_tokens = sum(label != IGNORED for sample in samples for label in sample.labels)
    report.escaped = sum(sample.escaped for sample in samples)
    return samples, report


def training_rows(samples: list[Encoded], config: TrainConfig, report: Report) -> list[Row]:
    """Rows as the model sees them: several samples each when packed, else one."""
    plain: list[Sample] = [{"input_ids": sample.input_ids, "labels": sample.labels} for sample in samples]
    bins = [[index] for index in range(len(plain))]
    if config.data.pack:
        bins = pack_lengths([len(sample["input_ids"]) for sample in plain], config.data.max_length)
        report.rows = len(bins)
    return [
        Row(number, [plain[index] for index in chosen], [samples[index].origin for index in chosen])
        for number, chosen in enumerate(bins)
    ]


def _conversations(config: TrainConfig, report: Report) -> Iterator[tuple[str, list[Message]]]:
    for format_name, where, row in read_rows(config.data, config.settings.seed):
        report.read += 1
        try:
            messages = map_row(format_name, row)
        except RowError as error:
            raise ConfigError(
                f"data: {where}: format {format_name}: {error}", "name the right format in data.sources"
            ) from error
        if any(message.role == "assistant" and message.loss for message in messages):
            yield where, messages
        else:
            report.without_answer += 1


def _fitted(sample: Encoded, config: TrainConfig, report: Report) -> Encoded | None:
    """The sample, shortened by whole turns if it must be, or None."""
    limit = config.data.max_length
    if len(sample.input_ids) <= limit:
        return sample
    if config.data.overlong == "error":
        raise ConfigError(
            f"data.overlong: got a conversation of {len(sample.input_ids)} tokens, allowed: {limit} (data.max_length)",
            f"it starts: {sample.text[:80]!r}",
        )
    fits = [end for end in sample.turn_ends if end <= limit]
    if config.data.overlong == "keep_turns" and fits and any(label != IGNORED for label in sample.labels[: fits[-1]]):
        report.shortened += 1
        return Encoded(
            sample.text, sample.input_ids[: fits[-1]], sample.labels[: fits[-1]], tuple(fits), sample.escaped
        )
    report.too_long += 1
    return None
