"""Keys that stand twice in one object of a JSON text: parsers keep the last value and say nothing. Pure.

A parser that tells is several times slower than one that does not, so it runs only over texts in which the number of
`":` is not that of the keys: in these a key stands twice, or a value holds such a mark.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

BLANKS = re.compile(rb'"[ \t\r\n]+:')  # a key may have them behind it, and is then not counted


class Doubled(str):
    """A key that stands more than once, in the place of its object."""


def doubled_key(text: bytes, value: Any) -> str | None:
    """A key that stands twice in an object of a text which has been parsed to `value`; None when there is none."""
    return None if _each_once(text, value) else first_doubled(_marked(text))


def doubled_rows(text: bytes, rows: list[Any]) -> Iterator[str | None]:
    """The same for each item of an array."""
    yield from ((None for _ in rows) if _each_once(text, rows) else map(first_doubled, _marked(text)))


def object_of(pairs: list[tuple[str, Any]]) -> Any:
    """An object as json's `object_pairs_hook` makes it, or its Doubled key."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    return Doubled(Counter(key for key, _ in pairs).most_common(1)[0][0])


def first_doubled(value: Any) -> str | None:
    """The first Doubled key anywhere in a value that was parsed with object_of."""
    if isinstance(value, Doubled):
        return value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for found in map(first_doubled, inside) if found is not None), None)


def _each_once(text: bytes, value: Any) -> bool:
    return text.count(b'":') == _keys(value) and not BLANKS.search(text)


def _keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) else 0


def _marked(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=object_of)
