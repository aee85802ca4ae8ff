"""Job kinds by their section of a job file, imported when they are used. Another package adds one through the
entry-point group `launch.kinds`: `section = "module:Class"`."""

from launcher.job.kind import Kind
from launcher.plugins import Plugins

KINDS: Plugins[type[Kind]] = Plugins("launch.kinds", {
    "train": "launcher.kinds.train.kind:Train",
    "run": "launcher.kinds.command:Command",
}, "a class derived from Kind whose key is its name", lambda name, found: (
    isinstance(found, type) and issubclass(found, Kind) and found.key == name))


def able_to(ability: type) -> list[str]:
    """The kinds that have an ability, for the message that another one lacks it."""
    return [key for key in KINDS.usable() if issubclass(KINDS.load(key), ability)]
