"""Saves beside training: what is written, when it counts, and what a failure does. Real threads, held by the test."""

import threading
from collections import OrderedDict

import pytest
import torch

from trainer.checkpoints.checkpoint import Writers, newest_valid, part_folder, publish
from trainer.checkpoints.saver import Saver, on_host
from trainer.errors import SaveError
from trainer.node.host_memory import free_bytes
from trainer.node.ranks import Place

WAIT_S = 60


@pytest.fixture
def told():
    return []


@pytest.fixture
def saver(tmp_path, told):
    return saver_of(0, 1, tmp_path, told)


def saver_of(rank, world, output, told):
    place = Place(rank, rank, world, torch.device("cpu"))
    writers = Writers(world, 8, split=True)
    return Saver(output, lambda step: publish(output, step, writers, 2), place, lambda: None, told.append)


def written_by(saver, step, state, gate=None):
    """A checkpoint of one file, whose writing waits for the gate."""
    folder = part_folder(saver.output) / f"checkpoint-{step}"

    def write(held):
        assert gate is None or gate.wait(WAIT_S)
        folder.mkdir(parents=True)
        torch.save(held, folder / "state.pt")

    with saver.save(step):
        saver.write(state, write)


def test_what_is_written_is_the_state_of_its_step(saver, tmp_path):
    gate, weights = threading.Event(), torch.ones(3)
    written_by(saver, 1, {"weights": weights}, gate)
    weights.zero_()
    gate.set()
    saver.wait()
    assert torch.load(tmp_path / "checkpoint-1/state.pt", weights_only=True)["weights"].tolist() == [1, 1, 1]


def test_nothing_counts_before_all_ranks_have_written(saver, tmp_path, told):
    gate = threading.Event()
    written_by(saver, 1, torch.ones(3), gate)
    saver.check()
    assert saver.is_writing
    assert newest_valid(tmp_path) == (None, [])
    gate.set()
    saver.wait()
    assert not saver.is_writing
    assert newest_valid(tmp_path) == (tmp_path / "checkpoint-1", [])
    assert told == [f"saved {tmp_path}/checkpoint-1 (step 1)"]


def test_other_ranks_leave_publishing_to_rank_0(tmp_path, told):
    saver = saver_of(1, 2, tmp_path, told)
    written_by(saver, 1, torch.ones(3))
    saver.wait()
    assert newest_valid(tmp_path) == (None, [])
    assert (part_folder(tmp_path) / "checkpoint-1/state.pt").exists()
    assert told == []


def test_the_next_save_waits_for_the_one_before(saver, tmp_path):
    for step in (1, 2, 3):
        written_by(saver, step, torch.ones(3))
        assert step == 1 or (tmp_path / f"checkpoint-{step - 1}").exists()
    saver.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_failure_to_write_is_raised_at_a_later_step_and_never_counts(saver, tmp_path):
    def full(held):
        raise OSError(28, "No space left on device")

    with saver.save(5):
        saver.write(torch.ones(3), full)
    with pytest.raises(SaveError, match=r"step 5 could not be saved: No space left on device"):
        saver.wait()
    assert saver.is_writing  # so that no rank believes it
    with pytest.raises(SaveError):
        saver.check()
    assert newest_valid(tmp_path) == (None, [])


def test_a_failure_to_publish_is_raised_at_a_later_step(saver, tmp_path):
    with saver.save(5):
        saver.write(torch.ones(3), lambda held: None)  # no file: nothing to give a name to
    with pytest.raises(SaveError, match="step 5 could not be saved: No such file or directory"):
        saver.wait()


def test_a_state_without_room_for_a_copy_is_written_at_once(saver, monkeypatch):
    monkeypatch.setattr("trainer.checkpoints.saver.HOST_SHARE", 0)
    state, seen = torch.ones(3), []
    with saver.save(1):
        saver.write(state, seen.append)
        assert seen == [state]


def test_copies_keep_their_kind_and_what_is_one_stays_one():
    weight = torch.arange(4.0).view(2, 2)
    groups = [{"lr": 0.1, "params": (0, 1)}]
    state = OrderedDict(a=weight, b=weight.detach(), turned=weight.t(), half=weight[0], groups=groups)
    held = on_host(state, {})
    weight.zero_()
    groups[0]["lr"] = 0.5
    assert type(held) is OrderedDict
    assert held["a"] is held["b"]
    assert held["a"].tolist() == [[0, 1], [2, 3]]
    assert held["turned"].tolist() == [[0, 2], [1, 3]]
    assert held["half"].tolist() == [0, 1]
    assert held["groups"] == [{"lr": 0.1, "params": (0, 1)}]


def test_free_memory_is_what_the_container_may_still_take(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert free_bytes(meminfo, group) == 3000 * 1024
    group.mkdir()
    for name, text in (("max", "1000\n"), ("current", "900\n"), ("stat", "anon 300\ninactive_file 500\n")):
        (group / f"memory.{name}").write_text(text)
    assert free_bytes(meminfo, group) == 600
    (group / "memory.max").write_text("max\n")
    assert free_bytes(meminfo, group) == 3000 * 1024
