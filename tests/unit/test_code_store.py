"""Code snapshots: stored once, read-only, whole or not used, gone with the last run that needs them."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.job.code.snapshot import take_snapshot
from launcher.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "home")


@pytest.fixture
def snapshot(tmp_path):
    (tmp_path / "source/package").mkdir(parents=True)
    (tmp_path / "source/package/a.py").write_text("x = 1\n")
    (tmp_path / "source/link").symlink_to("package")
    return take_snapshot(tmp_path / "source")


def used_by(store, snapshot, run_id):
    """A run that has this code; the place where it finds it."""
    store.claim(run_id)
    store.code.use(snapshot, store.folder(run_id))
    return store.folder(run_id) / "code"


def stored(store):
    """What lies in the store."""
    return sorted(path.name for path in store.code.root.iterdir() if path.is_dir())


def test_runs_of_one_code_share_one_copy_that_nobody_can_write(store, snapshot):
    first, second = used_by(store, snapshot, "a"), used_by(store, snapshot, "b")
    assert first.resolve() == second.resolve() == store.code.root / snapshot.digest
    assert (first / "package/a.py").read_text() == "x = 1\n" and os.readlink(first / "link") == "package"
    modes = [stat.S_IMODE(path.stat().st_mode) & 0o222 for path in (first.resolve(), *first.resolve().rglob("*"))]
    assert modes == [0] * 4
    assert not os.path.isabs(os.readlink(first))  # the home may be mounted elsewhere on the nodes


def test_it_goes_with_the_last_run(store, snapshot):
    used_by(store, snapshot, "a")
    used_by(store, snapshot, "b")
    store.remove("a")
    assert stored(store) == [snapshot.digest]
    store.forget("b")
    assert stored(store) == []


def test_many_submits_at_once_make_one_copy(store, snapshot):
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda number: used_by(store, snapshot, f"run-{number}"), range(24)))
    assert {place.resolve() for place in places} == {store.code.root / snapshot.digest}
    assert stored(store) == [snapshot.digest]


def test_submits_and_removals_at_once_leave_every_run_its_code(store, snapshot):
    def turn(number):
        place = used_by(store, snapshot, f"run-{number}")
        found = (place / "package/a.py").read_text()
        store.remove(f"run-{number}")
        return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(turn, range(60))) == {"x = 1\n"}
    assert stored(store) == []


@pytest.mark.parametrize("harm", [
    lambda path: (path / "package/a.py").unlink(),
    lambda path: (path / "package/b.py").write_text("more"),
    lambda path: ((path / "package/a.py").chmod(0o644), (path / "package/a.py").write_text("x = 2\n")),
], ids=["missing", "added", "changed"])
def test_a_copy_that_is_not_whole_is_not_used(store, snapshot, harm):
    place = used_by(store, snapshot, "a").resolve()
    for folder in (place, place / "package"):
        folder.chmod(0o755)
    harm(place)
    own = used_by(store, snapshot, "b")
    assert not own.is_symlink() and (own / "package/a.py").read_text() == "x = 1\n"
    assert sorted(os.listdir(own / "package")) == ["a.py"]


def test_what_a_killed_submit_left_unfinished_goes_when_it_is_old(store, snapshot):
    used_by(store, snapshot, "a")
    for name in (".0123.ab.part", ".4567.cd.part"):
        (store.code.root / name).mkdir()
    long_ago = time.time() - 2 * 3600
    os.utime(store.code.root / ".0123.ab.part", (long_ago, long_ago))
    assert store.code.unused() == [".0123.ab.part"]
    store.code.sweep()
    assert stored(store) == [".4567.cd.part", snapshot.digest]
