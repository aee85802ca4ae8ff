"""Things of other packages, by name."""

import pytest

from launcher.errors import LaunchError
from launcher.plugins import Plugins, installed


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package with entry points that cannot be loaded, beside one that can."""
    folder = tmp_path / "odd-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[launch.test]\ngone = no_such_module_here:Thing\nempty = json:NoSuchThing\ngood = json:dumps\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield Plugins("launch.test", {"own": "json:loads"})
    installed.cache_clear()


def test_our_own_come_first_and_others_by_their_entry_points(broken):
    assert broken.names() == ["own", "gone", "empty", "good"]
    assert broken.load("good")(1) == "1" and "own" in broken and "other" not in broken


@pytest.mark.parametrize(("name", "why"), [
    ("gone", "no_such_module_here:Thing of launch.test cannot be loaded: ModuleNotFoundError"),
    ("empty", "json:NoSuchThing of launch.test cannot be loaded: AttributeError")])
def test_one_that_cannot_be_loaded_is_named_with_its_package(broken, name, why):
    with pytest.raises(LaunchError, match=why):
        broken.load(name)
