"""Things by name: our own from a table, others from installed packages. Imported when they are used."""

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

from launcher.errors import LaunchError

T = TypeVar("T")


class Plugins(Generic[T]):
    """One kind of thing. `is_one` says of what a package names whether it is such a thing, which `what` describes.

    Other packages are looked through only for a name that is not in the table: that takes longer than all else that
    `launch --help` does. So a name of ours means ours.
    """

    def __init__(self, group: str, own: Mapping[str, str], what: str, is_one: Callable[[str, Any], bool]) -> None:
        self.group = group
        self.own = own
        self.what = what
        self.is_one = is_one

    def load(self, name: str) -> T:
        """The thing called `name`. Raises KeyError, or LaunchError for one of a package that cannot be imported."""
        if name in self.own:
            return cast(T, load_object(self.own[name]))
        entry, *others = installed(self.group)[name]
        if others:
            packages = " and ".join(one.package for one in (entry, *others))
            raise LaunchError(f"{name}: {packages} have an entry point of this name in {self.group}",
                              f"uninstall all but one: pip uninstall {others[0].package}")
        where = f"{name}: the entry point {entry.value} of {entry.package} in {self.group}"
        hint = f"fix or uninstall it: pip uninstall {entry.package}"
        try:
            found = load_object(entry.value)
            is_one = self.is_one(name, found)
        except (Exception, SystemExit) as error:  # whatever another package's code raises while it is imported
            raise LaunchError(f"{where} cannot be loaded: {type(error).__name__}: {error}", hint) from error
        if not is_one:
            raise LaunchError(f"{where} must be {self.what}", hint)
        return cast(T, found)

    def usable(self, wanted: Collection[str] = ()) -> list[str]:
        """Names of those that can be loaded, and of all that are `wanted`: a broken package is the trouble of those
        who ask for what it has."""
        return [name for name in self.names() if name in wanted or self._is_usable(name)]

    def _is_usable(self, name: str) -> bool:
        try:
            self.load(name)
        except LaunchError:
            return False
        return True

    def names(self) -> list[str]:
        """All there are, our own first."""
        return [*self.own, *(name for name in installed(self.group) if name not in self.own)]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in installed(self.group)


@dataclass(frozen=True)
class Entry:
    """What a package names: `module:attribute`."""

    package: str
    value: str


@cache
def installed(group: str) -> dict[str, list[Entry]]:
    """What installed packages name, by name: more than one entry when several packages have the same."""
    from importlib.metadata import entry_points

    found: dict[str, list[Entry]] = {}
    for entry in entry_points(group=group):
        new = Entry(entry.dist.name if entry.dist else "a package without a name", entry.value)
        if new not in found.setdefault(entry.name, []):
            found[entry.name].append(new)
    return found


def load_object(place: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
