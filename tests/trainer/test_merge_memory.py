"""How much host memory merging takes, whatever the number of layers (pain 11)."""

import subprocess
import sys

from tests.trainer.conftest import REPO
from tests.trainer.merging import write_large
from trainer.export.stored import checkpoint_weights

SHARD = 24 * 2**20


def test_merging_holds_less_than_the_largest_shard(tmp_path):
    layers = {"12": 12, "24": 24, "48": 48, "pickled": 24}
    outputs = [write_large(tmp_path / name, count, SHARD, pickled=name == "pickled") for name, count in layers.items()]
    done = subprocess.run([sys.executable, "-m", "tests.trainer.merging", *outputs], cwd=REPO, text=True,
                          capture_output=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == len(outputs)
    for output, peak, count in zip(outputs, peaks, layers.values(), strict=True):
        shard = max(path.stat().st_size for path in (output.parent / "base").iterdir())
        assert 0.9 * SHARD < shard < 1.1 * SHARD
        assert peak < 1.3 * shard
        assert len(checkpoint_weights(output.parent / "merged")) == 9 * count + 3
    assert max(peaks[:3]) - min(peaks[:3]) < 0.25 * SHARD
