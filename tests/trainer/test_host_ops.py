"""What is compiled for the host: a lock that a killed process left goes, one that is held stays; what is missing is
told."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch.utils.file_baton import FileBaton

from trainer.errors import ConfigError
from trainer.parallel.host_ops import is_left_behind, require_libaio


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


def test_a_machine_without_libaio_is_told_before_anything_is_compiled():
    lacking = SimpleNamespace(name="async_io", is_compatible=lambda verbose: False)
    with pytest.raises(ConfigError, match=r"got nvme, but .* has no libaio") as raised:
        require_libaio([lacking])
    assert "libaio-dev" in raised.value.hint
