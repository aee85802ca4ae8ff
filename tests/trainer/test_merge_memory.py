"""How much host memory merging takes, whatever the number of layers (pain 11)."""

import subprocess
import sys

import pytest

from tests.trainer.conftest import REPO
from tests.trainer.merging import write_large
from trainer.export.stored import checkpoint_weights, largest_shard

SHARD = 24 * 2**20


def peak(output, target):
    done = subprocess.run([sys.executable, "-m", "tests.trainer.merging", output, target], cwd=REPO, text=True,
                          capture_output=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("pickled", [False, True])
def test_merging_holds_less_than_the_largest_shard(pickled, tmp_path):
    peaks = {}
    for layers in (48,) if pickled else (12, 24, 48):
        output = write_large(tmp_path / str(layers), layers, SHARD, pickled=pickled)
        base, target = output.parent / "base", output.parent / "merged"
        assert largest_shard(base) > 0.9 * SHARD
        peaks[layers] = peak(output, target)
        assert peaks[layers] < 1.3 * largest_shard(base)
        assert len(checkpoint_weights(target)) == 9 * layers + 3
    assert max(peaks.values()) - min(peaks.values()) < 0.25 * SHARD
