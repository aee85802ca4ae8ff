"""Things by name: our own from a table, others from installed packages. Imported when they are used."""

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Generic, TypeVar, cast

from launcher.errors import LaunchError

T = TypeVar("T")


class Plugins(Generic[T]):
    """One kind of thing. Other packages are looked through only for a name that is not in the table: that takes longer
    than all else that `launch --help` does."""

    def __init__(self, group: str, own: Mapping[str, str]) -> None:
        self.group = group
        self.own = own

    def load(self, name: str) -> T:
        """The thing called `name`. Raises KeyError, or LaunchError for one of a package that cannot be imported."""
        if name in self.own:
            return cast(T, load_object(self.own[name]))
        place = installed(self.group)[name]
        try:
            return cast(T, load_object(place))
        except Exception as error:  # whatever another package's code raises while it is imported
            raise LaunchError(f"{name}: {place} of {self.group} cannot be loaded: {type(error).__name__}: {error}",
                              "mend or uninstall the package that has this entry point") from error

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


def load_object(place: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
