"""A lock between processes and machines: who is alive, who is gone, and that of several takers one wins."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest

from trainer.node.lock import Holder, Lock, LockLostError, Sign, submission

PATIENCE_S = 60
FORK = multiprocessing.get_context("fork")
ELSEWHERE = replace(Holder.me("theirs", "1"), host="other-host", machine="another boot", mark="m1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lock"


def held_by(path, holder):
    """The file as another process leaves it."""
    path.write_text(json.dumps(asdict(holder)))


class Heart:
    """Touches a lock file as its holder on another machine would."""

    def __init__(self, path):
        self.path, self.stopped = path, threading.Event()

    def __enter__(self):
        threading.Thread(target=self.beat, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()

    def beat(self):
        while not self.stopped.wait(0.05):
            os.utime(self.path)


def hold(path, ready):
    lock = Lock(path, Holder.me("theirs"))
    assert list(lock.acquire()) == []
    ready.set()
    time.sleep(PATIENCE_S)


@pytest.fixture
def other(path):
    """Another process of this machine that holds the lock."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(path, ready))
    process.start()
    assert ready.wait(PATIENCE_S)
    yield process
    process.kill()
    process.join()


def taken(path, dead_s=PATIENCE_S):
    """A lock as this process gets it, and the signs it saw."""
    lock = Lock(path, Holder.me("mine"), dead_s)
    return lock, [sign for _, sign in lock.acquire()]


def test_it_is_held_until_it_is_given_back_and_leaves_nothing(path):
    lock, signs = taken(path)
    assert lock.is_held and signs == []
    assert lock.holder() == lock.me
    lock.require()
    lock.release()
    assert not lock.is_held and list(path.parent.iterdir()) == []


def test_a_process_of_this_machine_is_known_to_live_at_once_also_when_it_is_stopped(path, other):
    os.kill(other.pid, signal.SIGSTOP)
    holder, sign = next(Lock(path, Holder.me(), dead_s=0).acquire())
    assert (holder.pid, holder.run, sign) == (other.pid, "theirs", Sign.ALIVE)


def test_a_killed_process_of_this_machine_is_known_to_be_gone_at_once(path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    lock, signs = taken(path)
    assert signs == [Sign.DEAD] and lock.is_held
    lock.release()


def test_another_process_with_the_same_id_is_not_the_holder(path):
    held_by(path, replace(Holder.me("theirs"), born="12"))  # this very id, started at another time
    assert taken(path)[1] == [Sign.DEAD]


def test_elsewhere_a_heartbeat_is_life(path):
    held_by(path, ELSEWHERE)
    with Heart(path):
        signs = (sign for _, sign in Lock(path, Holder.me()).acquire())
        assert next(signs) is Sign.SILENT
        assert next(sign for sign in signs if sign is not Sign.SILENT) is Sign.ALIVE


def test_elsewhere_silence_is_death(path):
    held_by(path, ELSEWHERE)
    lock, signs = taken(path, dead_s=0.5)
    assert signs[0] is Sign.SILENT and signs[-1] is Sign.DEAD and lock.is_held


def test_a_lock_file_of_another_version_is_judged_by_its_heartbeat(path):
    path.write_text("some-host process 12 f00")
    assert taken(path, dead_s=0.5)[1][-1] is Sign.DEAD


def race(path, gate, won, done):
    gate.wait(PATIENCE_S)
    lock = Lock(path, Holder.me())
    for _, sign in lock.acquire():
        if sign is Sign.ALIVE:
            break
    won.put(lock.is_held)
    done.wait(PATIENCE_S)


def test_of_many_that_find_a_dead_lock_exactly_one_wins(path):
    for _ in range(5):
        held_by(path, replace(Holder.me("theirs"), born="12"))
        gate, won, done = FORK.Event(), FORK.Queue(), FORK.Event()
        racers = [FORK.Process(target=race, args=(path, gate, won, done)) for _ in range(8)]
        for racer in racers:
            racer.start()
        gate.set()
        assert sorted(won.get(timeout=PATIENCE_S) for _ in racers) == [False] * 7 + [True]
        done.set()
        for racer in racers:
            racer.join(PATIENCE_S)


def test_a_takeover_that_was_cut_short_is_not_waited_for_for_ever(path):
    held_by(path, ELSEWHERE)
    path.with_name(f"x.lock.{ELSEWHERE.mark}").touch()
    assert taken(path, dead_s=0.3)[0].is_held


def test_who_has_lost_it_hears_so_and_by_whom(path):
    removed, _ = taken(path)
    path.unlink()
    with pytest.raises(LockLostError, match=r"the lock of this run was removed"):
        removed.verify()
    stolen, _ = taken(path)
    held_by(path, ELSEWHERE)
    with pytest.raises(LockLostError, match=rf"was taken over by process {os.getpid()} on host other-host"):
        stolen.verify()
    with pytest.raises(LockLostError):
        stolen.require()
    stolen.release()
    assert stolen.holder() == ELSEWHERE


def test_a_process_that_was_suspended_looks_again(path, monkeypatch):
    monkeypatch.setattr("trainer.node.lock.BEAT_S", 1000)
    lock, _ = taken(path)
    path.unlink()
    lock.require()  # the last look was just now
    monkeypatch.setattr("trainer.node.lock.BEAT_S", 0)
    with pytest.raises(LockLostError):
        lock.require()


def test_a_submission_is_known_by_its_run_and_its_scheduler():
    slurm = {"LAUNCH_RUN_ID": "a-1", "SLURM_JOB_ID": "7"}
    assert submission(slurm) == ("a-1", "7")
    assert submission({"LAUNCH_RUN_ID": "a-1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == ("a-1", "kubernetes")
    mine = Holder.me(*submission(slurm))
    assert mine.same_run(Holder.me(*submission(slurm)))
    assert not mine.same_run(Holder.me(*submission({**slurm, "SLURM_JOB_ID": "8"})))
    assert not Holder.me(*submission({})).same_run(Holder.me(*submission({})))
