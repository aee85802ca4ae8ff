"""`--require` makes a skip of a test that needs something a failure, with the reason."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE = "tests/contract/test_backends.py::test_submit_prints_the_handle_alone[slurm]"


def outcome(tmp_path, *options):
    """Exit code and output of one test that needs Slurm, on a PATH without it."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, ONE], cwd=ROOT,
                          text=True, capture_output=True, env={**os.environ, "PATH": str(tmp_path)})
    return done.returncode, done.stdout


def test_a_skip_says_why_and_another_requirement_changes_nothing(tmp_path):
    code, out = outcome(tmp_path, "--require=podman")
    assert code == 0
    assert "1 skipped" in out
    assert "no slurmctld, slurmd, sbatch, munged on PATH (make test-deps installs them)" in out


def test_a_required_skip_fails(tmp_path):
    code, out = outcome(tmp_path, "--require=podman,slurm")
    assert code == 1
    assert "required by --require, but: Skipped: no slurmctld" in out
