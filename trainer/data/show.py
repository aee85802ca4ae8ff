"""An inspection of a job's data for people, on a terminal or in a text file. rich is loaded when it is shown."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from trainer.data.first_rows import RowFound, SampleFound
from trainer.data.inspect import Epoch, Inspection, Lengths, SourceFound, Stage
from trainer.data.pieces import Piece
from trainer.data.report import MEANINGS
from trainer.data.template_check import Side, TemplateCheck
from trainer.node.output import picture, terminal_safe

BAR_CELLS = 40
SHOWN_CHARACTERS = 400  # of each text of a raw row and of its messages; the rendered text is shown whole
OPEN, CLOSE = "⟦", "⟧"
_STYLES = {  # (trained, special)
    (False, False): "",
    (True, False): "green underline",
    (False, True): "bold magenta",
    (True, True): "bold green underline",
}


class Progress:
    """Rows read so far, in place on a terminal, at most once a second; elsewhere nothing."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self._next = clock() + 1 if stream.isatty() else float("inf")
        self._told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._told:
            self._write("")

    def tell(self, rows: int) -> None:
        """So many by now."""
        now = self.clock()
        if now >= self._next:
            self._next, self._told = now + 1, True
            self._write(f"{rows} rows read ...")

    def _write(self, text: str) -> None:
        self.stream.write(f"\r{text}\x1b[K")
        self.stream.flush()


def show(found: Inspection, stream: TextIO) -> None:
    """All of it: the rows first, the counts last."""
    from rich.console import Console

    coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    console = Console(
        file=stream, color_system="auto" if coloured else None, force_terminal=coloured,
        highlight=False, markup=False, emoji=False, soft_wrap=True,
    )  # fmt: skip
    write = _Writer(console, coloured)
    for number, row in enumerate(found.rows, 1):
        _show_row(write, row, number)
    write.section("sources", source_lines(found.sources))
    write.section("stages", stage_lines(found.stages))
    write.section("not trained as it stands in the rows", found.noted)
    write.section("bad rows", bad_lines(found))
    write.section("tokens of a sample", length_lines(found.lengths))
    write.section("one epoch, on one process", epoch_lines(found.epoch))
    write.section("template check", check_lines(found.template))


class _Writer:
    """Lines and marked text on a console of rich."""

    def __init__(self, console: Any, coloured: bool) -> None:
        self.console, self.coloured = console, coloured

    def section(self, title: str, lines: Sequence[str]) -> None:
        if lines:
            self.line(title, style="bold")
            for line in lines:
                self.line(f"  {line}")
            self.line("")

    def line(self, text: str, style: str = "") -> None:
        self.console.print(printable(text), style=style)

    def pieces(self, pieces: Sequence[Piece]) -> None:
        from rich.text import Text

        shown = Text()
        for piece, marked in zip(pieces, _marked(pieces), strict=True):
            shown.append(printable(piece.text if self.coloured else marked), _STYLES[piece.trained, piece.special])
        self.console.print(shown)


def _show_row(write: _Writer, row: RowFound, number: int) -> None:
    write.section(f"row {number}: {row.place}", [json.dumps(clipped(row.row), ensure_ascii=False)])
    write.section("map", list(message_lines(row)))
    hint = "trained text is green and underlined" if write.coloured else f"trained text is between {OPEN} and {CLOSE}"
    write.line(f"template: {hint}", style="bold")
    write.pieces(row.pieces)
    write.line("")
    for title, pieces in encode_parts(row):
        write.line(title, style="bold")
        if pieces:
            write.pieces(pieces)
        write.line("")


def encode_parts(row: RowFound) -> Iterator[tuple[str, Sequence[Piece]]]:
    """A title for each sample of a row, and its text where it is not as the template has it."""
    if row.samples is None:
        yield "encode: left out, nothing in it is trained", []
    elif not row.samples:
        yield "encode: left out, longer than data.max_length", []
    for sample in row.samples or []:
        same = sample.pieces == row.pieces
        yield f"encode: {_counts(sample)}{', the text as above' if same else ''}", [] if same else sample.pieces


def _counts(sample: SampleFound) -> str:
    return f"{len(sample.input_ids)} tokens, {sum(label >= 0 for label in sample.labels)} of them trained"


def message_lines(row: RowFound) -> Iterator[str]:
    """A line for each message, and for the tools and images of the conversation."""
    for message in row.messages:
        more = {name: value for name, value in message.items() if name not in ("role", "content")}
        extra = f" {json.dumps(more, ensure_ascii=False)}" if more else ""
        yield f"{message['role']}: {json.dumps(clipped(message['content']), ensure_ascii=False)}{extra}"
    for name, values in (("tools", row.tools), ("images", row.images)):
        if values:
            yield f"{name}: {json.dumps(clipped(values), ensure_ascii=False)}"


def source_lines(sources: Sequence[SourceFound]) -> list[str]:
    """A line for each source, and for each of its files when it has several."""
    lines = []
    for source in sources:
        weight = f", weight {source.weight:g}" if source.weight != 1 else ""
        kind = ", for validation" if source.validation else ""
        samples = f"{sum(source.files.values())} samples"
        lines.append(f"{source.path}: format {source.format or 'unknown'}, {samples}{weight}{kind}")
        if len(source.files) > 1:
            lines += [f"  {name}: {count} samples" for name, count in source.files.items()]
    return lines


def stage_lines(stages: Sequence[Stage]) -> list[str]:
    """A line for each stage, below it what it left out and what it did."""
    width = max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        lines.append(f"{stage.name:<{width}}  {stage.rows_in:>9} in  {stage.rows_out:>9} out")
        lines += [f"  {count} {MEANINGS[name]}" for name, count in {**stage.left_out, **stage.notes}.items()]
    return lines


def bad_lines(found: Inspection) -> list[str]:
    """The first bad rows; how many there are of a kind, when there are more."""
    more = sum(stage.left_out.get("bad", 0) for stage in found.stages) > len(found.bad_rows)
    return [*found.bad_rows, *(f"{count} rows: {reason}" for reason, count in found.reasons.items() if more)]


def length_lines(lengths: Lengths) -> list[str]:
    """Totals, and a bar for each bin of the histogram."""
    share = lengths.trained / lengths.tokens if lengths.tokens else 0
    lost = f"; {lengths.lost} tokens lost to data.max_length" if lengths.lost else ""
    lines = [
        f"{lengths.samples} samples, {lengths.tokens} tokens, {share:.0%} of them trained{lost}",
        f"shortest {lengths.shortest}, median {lengths.median}, longest {lengths.longest}",
    ]
    most = max((one.samples for one in lengths.histogram), default=1)
    width = len(str(lengths.histogram[-1].longest)) if lengths.histogram else 0
    for one in lengths.histogram:
        bar = "█" * -(-BAR_CELLS * one.samples // most)
        lines.append(f"{one.shortest:>{width}}-{one.longest:<{width}}  {bar} {one.samples}")
    return lines


def epoch_lines(epoch: Epoch) -> list[str]:
    """How much training there is."""
    full = f", {epoch.fill:.1%} full" if epoch.fill is not None else ""
    packed = f" of {epoch.max_length} tokens{full}, no sample cut" if epoch.fill is not None else " (no packing)"
    return [
        f"{epoch.tokens} tokens in {epoch.rows} rows{packed}",
        f"{epoch.steps:.4g} optimizer steps of {epoch.batch} rows; {epoch.total_steps} in the whole job",
        f"{epoch.validation_rows} rows for validation",
    ]


def check_lines(check: TemplateCheck) -> list[str]:
    """What the comparison found; the difference with both sides."""
    lines = [f"{check.template} and the tokenizer's own chat_template: {check.result}"]
    if check.result == "equal":
        lines[0] += f" (the tokens of the first {check.compared} conversations)"
    if check.why:
        lines.append(check.why)
    if check.difference:
        difference = check.difference
        what = "the same text in other tokens" if difference.same_text else "another text"
        lines.append(f"{difference.place}: the first difference is token {difference.token}: {what}")
        lines.append(f"before:     {difference.before!r}")
        lines.append(f"trained on: {_side(difference.ours)}")
        lines.append(f"tokenizer:  {_side(difference.theirs)}")
    return lines


def _side(side: Side) -> str:
    return f"{side.text!r} {side.ids}" if side.ids else "(ends here)"


def clipped(value: Any) -> Any:
    """A value whose long texts are cut, with the number of characters that are left out."""
    if isinstance(value, dict):
        return {name: clipped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [clipped(inner) for inner in value]
    more = len(value) - SHOWN_CHARACTERS if isinstance(value, str) else 0
    return f"{value[:SHOWN_CHARACTERS]} ... ({more} more characters)" if more > 0 else value


def printable(text: str) -> str:
    """What a terminal would obey is made visible, and so are tabs, which look like blanks."""
    return terminal_safe(text).replace("\t", picture(ord("\t")))


def _marked(pieces: Sequence[Piece]) -> list[str]:
    """The texts with a mark where training begins and where it ends."""
    flags = [False, *(piece.trained for piece in pieces), False]
    return [
        (OPEN if piece.trained and not flags[place] else "")
        + piece.text
        + (CLOSE if piece.trained and not flags[place + 2] else "")
        for place, piece in enumerate(pieces)
    ]
