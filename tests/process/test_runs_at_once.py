"""The run folder under two processes at once."""

import os
import subprocess
import sys
from pathlib import Path

from launcher.runs.store import RunStore
from tests.unit.test_runs import saved


def test_two_processes_write_and_read_at_once(tmp_path):
    """One saves a run over and over, the other always reads a whole one."""
    script = ("import sys, pathlib; sys.path.insert(0, sys.argv[2]); from tests.unit.test_runs import saved, RunStore\n"
              "store = RunStore(pathlib.Path(sys.argv[1]))\n"
              "[saved(store, 'a', name='x' * (n % 1000)) for n in range(300)]")
    root = Path(__file__).parents[2]
    store = RunStore(tmp_path)
    saved(store, "a")
    writer = subprocess.Popen([sys.executable, "-c", script, tmp_path, root])
    while writer.poll() is None:
        assert store.find("a").run_id == "a"
    assert writer.returncode == 0
    assert sorted(os.listdir(store.folder("a"))) == ["logs", "run.json"]
