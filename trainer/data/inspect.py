"""What `launch data` shows: the pipeline run over a job's rows, its first rows stage by stage, and what became of all
of them. Memory does not grow with the rows: samples and rejected rows lie in a folder."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.job import TrainConfig
from trainer.data.conversations import all_sources
from trainer.data.first_rows import FirstRows, Look, RowFound
from trainer.data.pipeline import Pipeline
from trainer.data.report import Report, packing_line
from trainer.data.rows import Rows, plan_rows
from trainer.data.sources import source_files
from trainer.data.store import Samples, SampleWriter
from trainer.data.template_check import TemplateCheck, check_template
from trainer.errors import ConfigError

REJECTED, DUMPED = "rejected.jsonl", "dumped.jsonl"
BAD_ROWS = 10  # shown
BINS = 12  # of the histogram, at most


@dataclass(frozen=True)
class SourceFound:
    """`files`: the samples that each gave. `validation`: not trained on."""

    path: str
    format: str | None
    weight: float
    validation: bool
    files: dict[str, int]


@dataclass(frozen=True)
class Stage:
    """Rows that go in and come out; `left_out` and `notes` count them by the names of trainer.data.report.MEANINGS."""

    name: str
    rows_in: int
    rows_out: int
    left_out: dict[str, int]
    notes: dict[str, int]


@dataclass(frozen=True)
class Bin:
    """Samples of `shortest` to `longest` tokens."""

    shortest: int
    longest: int
    samples: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of the samples that are kept; `lost` are those of shortened, truncated and dropped ones."""

    samples: int
    tokens: int
    trained: int
    lost: int
    shortest: int
    median: int
    longest: int
    histogram: list[Bin]


@dataclass(frozen=True)
class Epoch:
    """Training for one process. `fill`: the share of packed rows that is not padding, None without packing. `batch`:
    rows of one optimizer step. `steps`: of one epoch; `total_steps`: of the whole job."""

    rows: int
    tokens: int
    max_length: int
    fill: float | None
    batch: int
    steps: float
    total_steps: int
    validation_rows: int


@dataclass(frozen=True)
class Inspection:
    """All that is shown; dataclasses.asdict makes JSON of it. `summary`: lines as training prints them. `bad_rows`: the
    first, as `file:line: field: got, expected`; `reasons`: the most common, with the number of rows. `noted`: what of
    the rows is not trained as it stands there. `problem`: why nothing can be trained on."""

    summary: list[str]
    sources: list[SourceFound]
    stages: list[Stage]
    noted: list[str]
    bad_rows: list[str]
    reasons: dict[str, int]
    rows: list[RowFound]
    lengths: Lengths
    epoch: Epoch
    template: TemplateCheck
    problem: str = ""


def inspect_data(
    config: TrainConfig, tokenizer: Any, folder: Path, look: Look, tell: Callable[[int], None] = lambda rows: None
) -> Inspection:
    """Run the whole pipeline. `folder` is empty before; afterwards REJECTED in it has the rejected rows, and DUMPED the
    samples that were asked for. `tell` hears the number of rows read. Raises ConfigError as Pipeline does, but when all
    rows were left out: that can be shown."""
    (folder / REJECTED).touch()
    with (folder / DUMPED).open("w", encoding="utf-8") as dumped, SampleWriter(folder) as writer:
        first = FirstRows(look, dumped, lambda: tell(pipeline.report.read))
        pipeline = Pipeline(config, tokenizer, folder / REJECTED, first.see)
        problem = _run(pipeline, writer)
        writer.close({})
    report, samples = pipeline.report, Samples(folder)
    plan = plan_rows(samples, config.data, config.settings.seed)
    train, validation = (
        Rows(samples, plan[f"{name}_members"], plan[f"{name}_ends"]) for name in ("train", "validation")
    )
    epoch = _epoch(config, train, validation)
    packed = [packing_line(epoch.rows, epoch.tokens, epoch.max_length)] if config.data.pack else []
    return Inspection(
        summary=[*report.lines(), *packed],
        sources=list(_sources(config, report, samples)),
        stages=_stages(report, len(train) + len(validation)),
        noted=report.noted_lines(),
        bad_rows=list(_bad_rows(folder / REJECTED)),
        reasons=dict(report.reasons.most_common(BAD_ROWS)),
        rows=first.found(tokenizer),
        lengths=_lengths(samples.lengths, report),
        epoch=epoch,
        template=check_template(pipeline.template.name, pipeline.encoder, tokenizer, first.chats),
        problem=problem,
    )


def _run(pipeline: Pipeline, writer: SampleWriter) -> str:
    """Why nothing is left, when every row was looked at and left out."""
    try:
        pipeline.run(writer)
    except ConfigError as error:
        report = pipeline.report
        left_out = sum(report.counts[name] for name in ("bad", "filtered", "untrained", "dropped"))
        if pipeline.bad or left_out < report.read or not left_out:
            raise
        return error.message
    return ""


def _sources(config: TrainConfig, report: Report, samples: Samples) -> Iterator[SourceFound]:
    names: list[str] = samples.about["files"]
    sources = all_sources(config)
    pairs = samples.places[:, 0] * len(names) + samples.places[:, 1]
    counts = np.bincount(pairs, minlength=len(sources) * len(names)).reshape(len(sources), len(names))
    for number, source in enumerate(sources):
        files = {name: count for name, count in zip(names, counts[number].tolist(), strict=True) if count}
        if source.path not in files:  # a data set on the hub has one name and many files
            files = dict.fromkeys(source_files(source), 0) | files
        yield SourceFound(
            source.path, report.formats.get(source.path), source.weight, number >= len(config.data.sources), files
        )


def _stages(report: Report, rows: int) -> list[Stage]:
    counts = report.counts
    # conversations.py calls a row that is no object a problem of the field `row`; other bad rows are found later
    broken = sum(count for reason, count in report.reasons.items() if reason.startswith("row: "))
    steps = [
        ("sources", {"bad": broken, "filtered": counts["filtered"]}, ()),
        ("map and template", {"bad": counts["bad"] - broken}, ("unseen",)),
        ("encode", {"untrained": counts["untrained"]}, ("escaped", "duplicates")),
    ]
    stages, given = [], report.read
    for name, left, notes in steps:
        kept = given - sum(left.values())
        stages.append(Stage(name, given, kept, _counted(left), _counted({note: counts[note] for note in notes})))
        given = kept
    fitted = {name: counts[name] for name in ("shortened", "truncated", "split")}
    length = Stage("length", given, report.kept, _counted({"dropped": counts["dropped"]}), _counted(fitted))
    return [*stages, length, Stage("rows", report.kept, rows, {}, {})]


def _counted(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _bad_rows(rejected: Path) -> Iterator[str]:
    with rejected.open(encoding="utf-8") as file:
        for line, _ in zip(file, range(BAD_ROWS), strict=False):
            bad = json.loads(line)
            yield f"{bad['file']}:{bad['line']}: {bad['problem']}"


def _lengths(lengths: npt.NDArray[np.int32], report: Report) -> Lengths:
    marks = np.quantile(lengths, [0, 0.5, 1], method="nearest").tolist() if len(lengths) else [0, 0, 0]
    shortest, median, longest = marks
    return Lengths(
        report.kept, report.tokens, report.trained_tokens, report.lost_tokens,
        shortest, median, longest, _histogram(lengths, shortest, longest),
    )  # fmt: skip


def _histogram(lengths: npt.NDArray[np.int32], shortest: int, longest: int) -> list[Bin]:
    """Bins of a round width (1, 2 or 5 times a power of ten), as many as BINS allows."""
    widths = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < BINS)
    first = shortest // width
    counts = np.bincount(lengths // width - first)
    starts = range(first * width, longest + 1, width) if len(lengths) else ()
    return [Bin(start, start + width - 1, count) for start, count in zip(starts, counts.tolist(), strict=True)]


def _epoch(config: TrainConfig, train: Rows, validation: Rows) -> Epoch:
    data, optimizer = config.data, config.optimizer
    tokens, batch = int(train.lengths.sum()), optimizer.batch_size * optimizer.accumulation
    return Epoch(
        rows=len(train),
        tokens=tokens,
        max_length=data.max_length,
        fill=tokens / max(1, len(train) * data.max_length) if data.pack else None,
        batch=batch,
        steps=len(train) / batch,
        total_steps=optimizer.max_steps or math.ceil(len(train) * optimizer.epochs / batch),
        validation_rows=len(validation),
    )
