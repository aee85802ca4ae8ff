"""Encoded sets are kept by content, made by one process at a time, and never seen half-made."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from tests.trainer.conftest import load_tokenizer
from trainer.data.cache import DataCache, one_at_a_time
from trainer.data.store import ids_of
from trainer.errors import ConfigError

PATIENCE_S = 120
FORK = multiprocessing.get_context("fork")


def chats(count):
    return [{"messages": [{"role": "user", "content": f"Question {number}"},
                          {"role": "assistant", "content": f"Answer {number}"}]}
            for number in range(count)]  # fmt: skip


@pytest.fixture
def encode(tmp_path, small_tokenizer):
    """Asks the cache for a config's samples; returns how they are named, and themselves."""

    def ask(config):
        samples = DataCache(tmp_path / "cache", lambda text: None).samples(config, small_tokenizer)
        return samples.folder.name, [ids_of(one).tolist() for one in samples]

    return ask


def test_a_second_start_reads_no_row(make_config, encode, tmp_path):
    config = make_config(chats(5))
    first = encode(config)
    times = os.stat(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b"x" * times.st_size)  # as if unchanged, by size and time
    os.utime(tmp_path / "rows.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert encode(config) == first


def test_the_content_decides_not_the_time(make_config, encode, tmp_path):
    config = make_config(chats(5))
    first = encode(config)
    os.utime(tmp_path / "rows.jsonl", ns=(1, 1))
    assert encode(config) == first
    (tmp_path / "rows.jsonl").write_text(json.dumps(chats(1)[0]) + "\n")
    assert encode(config)[0] != first[0]


def test_every_setting_that_changes_samples_changes_the_name(make_config, encode, tmp_path):
    path = str(tmp_path / "rows.jsonl")
    changes = [{}, {"max_length": 100}, {"overlong": "drop"}, {"bad_rows": "skip"}, {"format": "messages"},
               {"sources": [{"path": path, "system": "Be kind."}]}, {"sources": [{"path": path, "min": {}}] * 2},
               {"validation": [{"path": path}]}, {"template": "chatml"}]  # fmt: skip
    names = [encode(make_config(chats(5), **change))[0] for change in changes]
    assert len(set(names)) == len(names)


def test_weights_seed_and_packing_do_not_encode_again(make_config, encode, tmp_path):
    path = str(tmp_path / "rows.jsonl")
    changes = [{}, {"pack": False}, {"sources": [{"path": path, "weight": 2.5}]}, {"validation": 0.2}]
    assert len({encode(make_config(chats(5), **change))[0] for change in changes}) == 1


def test_the_code_of_a_users_own_format_decides_too(make_config, encode, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "def read(row):\n    return {{'messages': [{{'role': 'user', 'content': 'q'}}, " \
           "{{'role': 'assistant', 'content': '{}'}}]}}\n"  # fmt: skip
    names = []
    for answer in ("one", "two"):
        (tmp_path / "my_format_of_rows.py").write_text(code.format(answer))
        names.append(encode(make_config([{"x": 1}], format="my_format_of_rows:read"))[0])
    assert names[0] != names[1]
    with pytest.raises(ConfigError, match="there is no module nowhere_at_all"):
        encode(make_config([{"x": 1}], format="nowhere_at_all:read"))


def test_a_failed_encoding_leaves_nothing(make_config, encode, tmp_path):
    with pytest.raises(ConfigError):
        encode(make_config([{"messages": 1}]))
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"files"}


def test_what_a_killed_process_left_half_made_is_made_again(make_config, encode, tmp_path, small_tokenizer):
    config = make_config(chats(5))
    name, samples = encode(config)
    home = tmp_path / "cache" / name
    half = home.with_suffix(".dead.part")
    home.rename(half)
    (half / "about.json").unlink()
    assert encode(config) == (name, samples)
    assert not half.exists()


def ask_in_a_process(config, folder, cache, said, names):
    tokenizer = load_tokenizer(str(folder))
    samples = DataCache(cache, said.put).samples(config, tokenizer)
    names.put((samples.folder.name, samples.folder.stat().st_ino, len(samples)))


def test_processes_that_start_together_encode_once(make_config, tmp_path, small_tokenizer_folder):
    config, names, said = make_config(chats(4000)), FORK.Queue(), FORK.Queue()
    processes = [FORK.Process(target=ask_in_a_process,
                              args=(config, small_tokenizer_folder, tmp_path / "cache", said, names))
                 for _ in range(4)]  # fmt: skip
    for process in processes:
        process.start()
    found = {names.get(timeout=PATIENCE_S) for _ in processes}
    for process in processes:
        process.join(PATIENCE_S)
    assert len(found) == 1 and next(iter(found))[2] == 4000
    assert not list((tmp_path / "cache").glob("*.lock*")) and not list((tmp_path / "cache").glob("*.part"))


def hold(path, ready):
    with one_at_a_time(path, lambda: False, print):
        ready.set()
        time.sleep(PATIENCE_S)


def test_the_lock_of_a_killed_process_is_taken_over_and_said(tmp_path):
    """axolotl#2684 and others: nobody waits for a process group's time-out."""
    path, ready, told = tmp_path / "x.lock", FORK.Event(), []
    holder = FORK.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.wait(PATIENCE_S)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with one_at_a_time(path, lambda: False, told.append) as is_mine:
        assert is_mine
    assert [line for line in told if f"process {holder.pid} on host" in line and " is gone; " in line] == told
    assert not path.exists()


def test_a_living_lock_is_waited_for_longer_than_a_dead_one(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.node.lock.BEAT_S", 0.1)
    path, ready, done = tmp_path / "x.lock", FORK.Event(), []
    holder = FORK.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.wait(PATIENCE_S)
    deadline = time.monotonic() + 4
    with one_at_a_time(path, lambda: bool(done) or time.monotonic() > deadline, lambda text: None, 2) as is_mine:
        assert not is_mine
    assert path.exists()
    holder.kill()
    holder.join()
