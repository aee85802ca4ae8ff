"""The exit code of a Slurm step is the worker's own: the real entrypoint and torchrun on two nodes of a real Slurm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP_S = 240


def package(folder: Path) -> Path:
    """The trainer with a stand-in for its command, as in tests/trainer/test_exit_codes.py."""
    shutil.copytree(ROOT / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/trainer/stand_in.py", folder / "trainer/cli.py")
    return folder


@pytest.mark.needs("slurm")
@pytest.mark.parametrize(("harm", "code"), [("1:code:70", 70), ("1:code:75", 75), ("1:die", 137)])
def test_a_step_ends_with_the_first_failed_workers_own_code(slurm_cluster, tmp_path, harm, code):
    """srun ends with the highest code of its tasks; the other node's is 1 or, with 75, the same. Other codes are as 70:
    tests/trainer/test_exit_codes.py."""
    port = 21000 + code
    node = ("import os, sys; os.environ.update(NODE_RANK=os.environ['SLURM_NODEID']); "
            "from trainer.node.entrypoint import main; sys.exit(main(['--config', 'c.yaml']))")
    done = subprocess.run(
        ["srun", "--partition=main", "--nodes=2", "--ntasks=2", "--mem=1500M", sys.executable, "-c", node],
        cwd=package(tmp_path), capture_output=True, text=True, timeout=STEP_S,
        env={**os.environ, **slurm_cluster, "LAUNCH_NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "LAUNCH_GRACE_S": "20", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "HARM": harm})
    assert done.returncode == code, done.stdout + done.stderr
