"""What became of the rows, counted; printed before training and by `launch data`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

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


@dataclass
class Report:
    """`read`: rows of all sources; `counts`: see MEANINGS; `reasons`: why rows are bad; `formats`: of each source;
    `lost_tokens`: what shortened, truncated and dropped conversations lost."""

    read: int = 0
    kept: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """From what `values()` gave, through JSON."""
        counters = {name: Counter(values[name]) for name in ("counts", "reasons")}
        return cls(**{**values, **counters})

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
        ]


def packing_line(rows: int, tokens: int, max_length: int) -> str:
    """How full the rows are, for people."""
    fill = tokens / (rows * max_length) if rows else 0
    return f"data: packed into {rows} rows of {max_length} tokens, {fill:.1%} full, no sample cut"
