"""An inspection of a job's data as one HTML page for sharing: no script, nothing from elsewhere, all text escaped."""

import json
from collections.abc import Iterable, Sequence
from html import escape

from trainer.data.first_rows import RowFound
from trainer.data.inspect import Inspection, Lengths
from trainer.data.pieces import Piece
from trainer.data.report import MEANINGS
from trainer.data.show import bad_lines, check_lines, encode_parts, epoch_lines, length_lines, printable, source_lines

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Data of a training job</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; border: 1px solid #8886; border-radius: 4px }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
meter { width: 20rem }
.trained { background: #2a25; border-bottom: 2px solid #2a2 }
.special { color: #a3a; font-weight: bold }
</style>
</head>
<body>
<h1>Data of a training job</h1>
"""


def render_page(found: Inspection) -> str:
    """The whole page."""
    parts = [
        _section("Sources", _lines(source_lines(found.sources))),
        _section("Stages", _stages(found)),
        _section("Not trained as it stands in the rows", _lines(found.noted)),
        _section("Bad rows", _lines(bad_lines(found))),
        _section("Tokens of a sample", _lengths(found.lengths)),
        _section("One epoch, on one process", _lines(epoch_lines(found.epoch))),
        _section("Template check", _lines(check_lines(found.template))),
        *(_row(row, number) for number, row in enumerate(found.rows, 1)),
    ]
    return f"{_HEAD}{''.join(parts)}</body>\n</html>\n"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}\n" if content else ""


def _lines(lines: Sequence[str]) -> str:
    return f"<pre>{_text(chr(10).join(lines))}</pre>" if lines else ""


def _stages(found: Inspection) -> str:
    rows = []
    for stage in found.stages:
        counts = {**stage.left_out, **stage.notes}
        what = "<br>".join(_text(f"{count} {MEANINGS[name]}") for name, count in counts.items())
        numbers = "".join(f'<td class="number">{number}</td>' for number in (stage.rows_in, stage.rows_out))
        rows.append(f"<tr><td>{_text(stage.name)}</td>{numbers}<td>{what}</td></tr>")
    return _table("<tr><th>stage</th><th>in</th><th>out</th><th></th></tr>", rows)


def _lengths(lengths: Lengths) -> str:
    most = max((one.samples for one in lengths.histogram), default=1)
    bars = [
        f'<tr><td class="number">{one.shortest}-{one.longest}</td>'
        f'<td><meter max="{most}" value="{one.samples}"></meter></td><td class="number">{one.samples}</td></tr>'
        for one in lengths.histogram
    ]
    return _lines(length_lines(lengths)[:2]) + _table("", bars)


def _table(head: str, rows: Iterable[str]) -> str:
    return f"<table>\n{head}{''.join(rows)}\n</table>"


def _row(row: RowFound, number: int) -> str:
    parts = [
        _section(f"Row {number}: {row.place}", f"<h3>Read</h3>{_json(row.row)}"),
        f"<h3>Map</h3>{_json({'messages': row.messages, 'tools': row.tools, 'images': row.images})}",
        '<h3>Template: <span class="trained">trained</span>, <span class="special">special tokens</span></h3>',
        _pieces(row.pieces),
    ]
    for title, pieces in encode_parts(row):
        parts.append(f"<h3>{_text(title.capitalize())}</h3>{_pieces(pieces) if pieces else ''}")
    return "\n".join(parts)


def _json(value: object) -> str:
    return _lines([json.dumps(value, ensure_ascii=False, indent=1)])


def _pieces(pieces: Sequence[Piece]) -> str:
    spans = []
    for piece in pieces:
        names = " ".join(name for name, is_so in (("trained", piece.trained), ("special", piece.special)) if is_so)
        spans.append(f'<span class="{names}">{_text(piece.text)}</span>' if names else _text(piece.text))
    # a browser drops a newline right behind <pre>
    return f"<pre>\n{''.join(spans)}</pre>"


def _text(text: str) -> str:
    return escape(printable(text))
