"""The run folder."""

import dataclasses
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.errors import LaunchError, NotFoundError
from launcher.runs.record import End
from launcher.runs.status import State
from launcher.runs.store import RunStore, launch_home, write_whole
from launcher.services.ends import collect_results
from tests.records import a_run


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def saved(store, run_id, created="2026-01-01T00:00:00", **more):
    """A run that was submitted."""
    store.claim(run_id)
    run = a_run(run_id, created=created, **more)
    store.save(run)
    return run


def test_ids_are_counted_up(store):
    assert store.first_free("a") == "a"
    store.claim("a")
    assert store.first_free("a") == "a-2"
    store.claim("a-2")
    assert store.first_free("a") == "a-3"


def test_one_claim_wins(store):
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: store.claim("a"), range(50))) == 1


def test_a_run_comes_back_as_saved(store):
    run = saved(store, "a", output_dir="/x", place={"job_id": "7"}, end=End(State.FAILED, "why", 3, "2026-01-02"))
    assert store.find("a") == store.find("local://a") == store.find(None) == run


def test_the_latest_is_meant_when_none_is_named(store):
    saved(store, "b", "2026-01-02T00:00:00")
    saved(store, "a", "2026-01-03T00:00:00")
    saved(store, "c", "2026-01-01T00:00:00")
    assert [run.run_id for run in store.all()] == ["c", "b", "a"]
    assert store.find(None).run_id == "a"


def test_no_runs_and_no_such_run(store):
    with pytest.raises(NotFoundError, match="no runs in"):
        store.find(None)
    saved(store, "a")
    with pytest.raises(NotFoundError, match="no run 'b' in"):
        store.find("b")


def test_an_unambiguous_start_is_enough(store):
    for run_id in ("train-1a", "train-1a-2", "other-2b"):
        saved(store, run_id)
    assert store.find("oth").run_id == store.find("other-2b").run_id == "other-2b"
    assert store.find("train-1a").run_id == "train-1a"  # whole, although it is the start of another
    assert store.find("local://train-1a").run_id == "train-1a"
    for start in ("t", "train-1"):
        with pytest.raises(NotFoundError, match=rf"'{start}' is ambiguous: it is the start of train-1a, train-1a-2$"):
            store.find(start)
    for nothing in ("", "rain", "local://oth", "OTH"):
        with pytest.raises(NotFoundError, match=f"no run '{nothing}' in"):
            store.find(nothing)
        assert store.lookup(nothing) is None


def test_the_start_of_a_damaged_records_id_names_the_damage(store):
    saved(store, "a")
    store.claim("bad")
    (store.folder("bad") / "run.json").write_text("{")
    with pytest.raises(LaunchError, match=r"bad/run\.json: is damaged"):
        store.find("ba")


@contextmanager
def a_start_that_fails(store, error):
    with pytest.raises(type(error)), store.refusal_noted(Path("job.yaml")):
        raise error
    yield


def test_after_a_refused_start_no_older_run_is_meant_until_one_succeeds(store):
    older = saved(store, "older")
    for error, why in ((LaunchError("too\nbig"), r"too \(and 1 more\)"), (KeyboardInterrupt(), "interrupted"),
                       (ZeroDivisionError(), "ZeroDivisionError")):
        with a_start_that_fails(store, error), pytest.raises(
                NotFoundError, match=rf"job.yaml was not started at 20\S+Z: {why}$") as refused:
            store.find(None)
        assert refused.value.hint == "the run before it: launch status older"
    assert store.find("older") == store.find("old") == older
    with store.refusal_noted(Path("job.yaml")):
        newer = saved(store, "newer", "2026-01-02T00:00:00")
    assert store.find(None) == newer


def test_a_refusal_that_cannot_be_written_or_read_hides_nothing(store, tmp_path):
    run = saved(store, "a")
    (tmp_path / "refused.json").write_text('["half"')
    assert store.find(None) == run
    (tmp_path / "refused.json").unlink()
    (tmp_path / "refused.json").mkdir()
    with a_start_that_fails(store, LaunchError("no")):
        assert store.find(None) == run
    assert sorted(os.listdir(tmp_path)) == ["refused.json", "runs"]


GOOD = dataclasses.asdict(a_run("bad"))


@pytest.mark.parametrize(("text", "why"), [
    ("", "is damaged: it is not JSON"), ("{", "is damaged: it is not JSON"),
    ("[]", "is damaged: it is not a run record"), ("null", "is damaged: it is not a run record"),
    ("{}", r"another version of launch \(run_id, name, kind"),
    ('{"run_id": "bad"}', r"another version of launch \(name"),
    (json.dumps({**GOOD, "nodes": "1"}), r"another version of launch \(nodes\)"),
    (json.dumps({**GOOD, "run_id": "../../other"}), "is not of this run"), ("\udcff", "is damaged: it is not JSON"),
])
def test_a_record_that_cannot_be_used_is_named(store, text, why):
    """And spares the others."""
    saved(store, "a")
    store.claim("bad")
    (store.folder("bad") / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert [run.run_id for run in store.all()] == ["a"]
    assert list(store.damaged()) == ["bad"]
    with pytest.raises(LaunchError, match=rf"bad/run\.json: .*{why}") as error:
        store.find("bad")
    assert error.value.hint.endswith(f"rm -r {store.folder('bad')}")
    assert store.find(None).run_id == "a"


def test_a_folder_without_a_record_is_no_run(store):
    store.claim("half")
    assert (store.all(), store.damaged()) == ([], {})


def test_a_home_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="file/runs: run folders cannot be made: Not a directory") as error:
        RunStore(tmp_path / "file").claim("a")
    assert "export LAUNCH_HOME=" in error.value.hint


def test_a_newer_version_may_add_fields(store):
    run = saved(store, "a")
    path = store.folder("a") / "run.json"
    path.write_text(path.read_text().replace("{", '{"later": 1,', 1))
    assert store.find("a") == run


def test_folders_and_files_are_the_users_own(store):
    saved(store, "a")
    assert stat.S_IMODE(store.folder("a").stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder("a") / "run.json").stat().st_mode) == 0o600


def test_write_whole_replaces_and_leaves_nothing(tmp_path):
    write_whole(tmp_path / "a", "one")
    write_whole(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]


def test_write_whole_says_what_failed(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(LaunchError, match=r"/a: cannot be written: Is a directory"):
        write_whole(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_small_results_are_collected(store, tmp_path):
    output = tmp_path / "out"
    (output / "adapter").mkdir(parents=True)
    (output / "metrics.jsonl").write_text("{}\n")
    (output / "adapter/adapter_config.json").write_text("{}")
    (output / "adapter/weights.safetensors").write_bytes(b"x" * (5 << 20))
    (output / "checkpoint.bin").write_text("big")
    run = saved(store, "a", output_dir=str(output))
    store.collect_results(run)
    store.collect_results(run)
    results = store.folder("a") / "results"
    found = sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())
    assert found == ["adapter/adapter_config.json", "metrics.jsonl"]


def test_results_that_cannot_be_kept_are_only_warned_about(store, tmp_path, capsys):
    """A full disk, a read-only home, a file of another user: the run's own end is what counts."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").write_text("{}\n")
    run = saved(store, "a", output_dir=str(tmp_path / "out"))
    (store.folder("a") / "results").write_text("in the way")
    collect_results(store, run)
    assert capsys.readouterr().err == (
        f"warning: a: {tmp_path}/out: its small files cannot be copied to {store.folder('a')}: File exists\n")


def test_a_run_that_was_removed_meanwhile_gets_no_results(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").write_text("{}\n")
    run = saved(store, "a", output_dir=str(tmp_path / "out"))
    store.remove("a")
    store.collect_results(run)
    assert not store.folder("a").exists()


def test_the_command_that_removes_a_run_names_its_folder_only(tmp_path):
    store = RunStore(tmp_path / "my home")
    store.claim("bad")
    (store.folder("bad") / "run.json").write_text("{")
    with pytest.raises(LaunchError) as error:
        store.find("bad")
    assert error.value.hint.endswith(f"rm -r '{store.folder('bad')}'")


def test_results_out_of_reach_are_no_error(store):
    store.collect_results(saved(store, "a"))
    store.collect_results(saved(store, "b", output_dir="/no/such/folder"))


def test_launch_home():
    assert str(launch_home({"LAUNCH_HOME": "/x", "HOME": "/h"})) == "/x"
    assert str(launch_home({"HOME": "/h"})) == "/h/.local/share/launch"
