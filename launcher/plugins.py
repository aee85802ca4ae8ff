"""Things by name: our own from a table, others from installed packages. Imported when they are used."""

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Plugins(Generic[T]):
    """One kind of thing. Other packages are looked through only for a name that is not in the table: that takes longer
    than all else that `launch --help` does."""

    def __init__(self, group: str, own: Mapping[str, str]) -> None:
        self.group = group
        self.own = own

    def load(self, name: str) -> T:
        """The thing called `name`. Raises KeyError."""
        return cast(T, _load(self.own[name] if name in self.own else installed(self.group)[name]))

    def names(self) -> list[str]:
        """All there are, our own first."""
        return [*self.own, *(name for name in installed(self.group) if name not in self.own)]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in installed(self.group)


@cache
def installed(group: str) -> dict[str, str]:
    """`module:attribute` by name, of every installed package that names one."""
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=group)}


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
