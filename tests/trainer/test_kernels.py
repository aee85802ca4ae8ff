"""The Triton kernels against their twins in float64: in Triton's interpreter here, on a GPU in tests/gpu."""

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.trainer.conftest import REPO
from trainer.kernels import plain

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton: it is there for Linux only")
# a product of cuBLAS, which runs on GPUs only: tests/gpu
ELSEWHERE = {"scaled_product"}
NAMES = [name for name, value in vars(plain).items()
         if inspect.isfunction(value) and not name.startswith("_") and name not in ELSEWHERE]  # fmt: skip
# Triton's interpreter loses the carry where a value is rounded up to the next power of two; GPUs do not (tests/gpu)
ROUNDED = {"scaled_rows": 0.2, "scaled_columns": 0.2}


@pytest.fixture(scope="module")
def found():
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPO)}
    script = "from tests.trainer.kernel_distances import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, cwd=REPO)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_is_compared(found):
    assert {name for name in NAMES if name not in found} == set()


@pytest.mark.parametrize("name", [*NAMES, "rms_norm_backward_alone", "nf4_weight_with_adapter"])
def test_a_kernel_computes_what_its_twin_does(found, name):
    assert found[name] < ROUNDED.get(name, 1e-6)
