"""What became of the rows, counted; printed before training and by `launch data`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

# count -> what it says of a number of rows or conversations; in the order of the pipeline
MEANINGS = {
    "bad": "rows cannot be used (data.bad_rows)",
    "filtered": "rows outside min and max left out",
    "untrained": "conversations with nothing to train on left out",
    "unseen": "conversations have images, which this model does not see; their marks stay text",
    "escaped": "conversations hold the text of a control token (a turn's end, a role); it was encoded as ordinary text",
    "split": "documents longer than max_length split into pieces",
    "shortened": "conversations longer than max_length lost trailing turns",
    "truncated": "conversations longer than max_length cut",
    "dropped": "conversations longer than max_length left out",
    "duplicates": "conversations are there more than once",
}
# what is not trained as it stands in the row
NOTES = {
    "joined": "neighbouring turns of the user are joined by a line end",
    "systems": "conversations have several system texts",
    "trailing": "turns behind the last answer are left out",
}
# kinds of names that rows are noted under
UNREAD = "nothing reads these columns and keys"
UNWRITTEN = "the template does not write these, so they are not trained"
SHOWN_NAMES, KEPT_NAMES = 20, 1000


class Noted(NamedTuple):
    """How many rows, and the place of the first as file:line."""

    rows: int
    first: str


@dataclass
class Report:
    """`read`: rows of all sources; `counts`: see MEANINGS; `reasons`: why rows are bad; `formats`: of each source;
    `lost_tokens`: what shortened, truncated and dropped conversations lost; `notes`, `unread`, `unwritten`: rows by
    what of them is not trained as it stands there, and the place of the first."""

    read: int = 0
    kept: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Noted] = field(default_factory=dict)
    unread: dict[str, Noted] = field(default_factory=dict)
    unwritten: dict[str, Noted] = field(default_factory=dict)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """From what `values()` gave, through JSON."""
        counters = {name: Counter(values[name]) for name in ("counts", "reasons")}
        noted = {
            name: {key: Noted(*found) for key, found in values[name].items()}
            for name in ("notes", "unread", "unwritten")
        }
        return cls(**{**values, **counters, **noted})

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    def lines(self) -> list[str]:
        """For people."""
        share = self.trained_tokens / self.tokens if self.tokens else 0
        first = (
            f"data: {self.read} rows read, {self.kept} samples kept, {self.tokens} tokens, {share:.0%} of them trained"
        )
        lost = f" ({self.lost_tokens} tokens)" if self.lost_tokens else ""
        return [
            first,
            *(
                f"data: {self.counts[name]} {meaning}{lost if name in ('shortened', 'truncated', 'dropped') else ''}"
                for name, meaning in MEANINGS.items()
                if self.counts[name]
            ),
            *(f"data: {line}" for line in self.noted_lines()),
        ]

    def noted_lines(self) -> list[str]:
        """What of the rows is not trained as it stands there, with the number of rows and the place of the first."""
        lines = [f"{NOTES[name]}: {_counted(found)}" for name, found in self.notes.items()]
        lines += [f"{UNREAD}: {_names(self.unread)}"] if self.unread else []
        return lines + ([f"{UNWRITTEN}: {_names(self.unwritten)}"] if self.unwritten else [])


def note(noted: dict[str, Noted], names: Iterable[str], place: str) -> None:
    """Count a row under each name."""
    for name in names:
        known = name if name in noted or len(noted) < KEPT_NAMES else "others"
        found = noted.get(known)
        noted[known] = Noted(found.rows + 1, found.first) if found else Noted(1, place)


def _names(noted: dict[str, Noted]) -> str:
    """The most frequent ones."""
    ranked = sorted(noted.items(), key=lambda item: -item[1].rows)
    listed = [f"{_shown(name)} ({_counted(found)})" for name, found in ranked[:SHOWN_NAMES]]
    more = len(ranked) - SHOWN_NAMES
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def _counted(found: Noted) -> str:
    return f"{found.rows} row{'s' * (found.rows != 1)}, the first: {_shown(found.first)}"


def _shown(name: str) -> str:
    """A name that came with the rows, in a line for people."""
    return name if name.isprintable() else repr(name)


def packing_line(rows: int, tokens: int, max_length: int) -> str:
    """How full the rows are, for people."""
    fill = tokens / (rows * max_length) if rows else 0
    return f"data: packed into {rows} rows of {max_length} tokens, {fill:.1%} full, no sample cut"
