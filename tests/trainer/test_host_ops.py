"""The locks that torch guards compilations by: one that a killed process left goes, one that is held stays."""

import subprocess
import sys

from torch.utils.file_baton import FileBaton

from trainer.dist import is_left_behind


def test_a_lock_that_is_held_is_not_left_behind(tmp_path):
    lock = FileBaton(str(tmp_path / "lock"))
    assert lock.try_acquire()
    assert not is_left_behind(tmp_path / "lock")
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_a_lock_of_a_killed_process_is(tmp_path):
    code = "import os, sys; from torch.utils.file_baton import FileBaton as B; B(sys.argv[1]).try_acquire(); os.abort()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False, stderr=subprocess.DEVNULL)
    assert (tmp_path / "lock").exists()
    assert is_left_behind(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert not is_left_behind(tmp_path / "lock")
