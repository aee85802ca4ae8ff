"""Things of other packages, by name."""

import pytest

from launcher.backends.registry import BACKENDS, BackendType
from launcher.errors import LaunchError
from launcher.plugins import Plugins, installed

ENTRIES = """[launch.test]
gone = no_such_module_here:Thing
empty = json:NoSuchThing
wrong = json:decoder
twice = json:dumps
quits = quitting_module:Thing
good = json:dumps
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Those of the package `odd`, some of which cannot be used, and of another that has one name, too."""
    for package, entries in (("odd", ENTRIES), ("other", "[launch.test]\ntwice = json:loads\n")):
        folder = tmp_path / f"{package}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(entries)
    (tmp_path / "quitting_module.py").write_text("raise SystemExit('needs another Python')")
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield Plugins("launch.test", {"own": "json:loads"}, "a function", lambda name, found: callable(found))
    installed.cache_clear()


def test_our_own_come_first_and_others_by_their_entry_points(plugins):
    assert set(plugins.names()) == {"own", "gone", "empty", "wrong", "twice", "quits", "good"}
    assert plugins.names()[0] == "own"
    assert plugins.load("good")(1) == "1" and "own" in plugins and "other" not in plugins


@pytest.mark.parametrize(("name", "why", "hint"), [
    ("gone", "gone: the entry point no_such_module_here:Thing of odd in launch.test cannot be loaded: Module",
     "fix or uninstall it: pip uninstall odd"),
    ("empty", "empty: the entry point json:NoSuchThing of odd in launch.test cannot be loaded: AttributeError",
     "fix or uninstall it: pip uninstall odd"),
    ("wrong", "wrong: the entry point json:decoder of odd in launch.test must be a function",
     "fix or uninstall it: pip uninstall odd"),
    ("quits", "quits: the entry point quitting_module:Thing of odd in launch.test cannot be loaded: SystemExit: needs",
     "fix or uninstall it: pip uninstall odd"),
    ("twice", "have an entry point of this name in launch.test", "uninstall all but one: pip uninstall ")])
def test_one_that_cannot_be_used_is_named_with_its_package(plugins, name, why, hint):
    with pytest.raises(LaunchError) as caught:
        plugins.load(name)
    assert why in caught.value.message
    assert caught.value.hint.startswith(hint)


def test_broken_ones_are_passed_over_but_for_those_that_are_wanted(plugins):
    assert plugins.usable(["gone"]) == ["own", "gone", "good"]


def test_a_back_end_without_its_parts_is_no_defect_of_launch():
    broken = BackendType("no_such_module_here:P", "json:dumps", "json:no_such_adapter")
    with pytest.raises(ModuleNotFoundError):  # which its loading tells as the package's
        BACKENDS.is_one("broken", broken)
    with pytest.raises(LaunchError, match="json:no_such_adapter, a part of a back end, cannot be loaded"):
        broken.backend(None, {})


def test_a_kind_that_calls_itself_otherwise_is_no_kind_of_that_name():
    from launcher.kinds.registry import KINDS
    from launcher.kinds.train.kind import Train

    assert KINDS.is_one("train", Train) and not KINDS.is_one("training", Train) and not KINDS.is_one("train", Train())
