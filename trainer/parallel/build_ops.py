"""`python -m trainer.parallel.build_ops [--nvme]`: compile DeepSpeed's CPU communication op, and what offload to NVMe
needs, now instead of at the first training run."""

import argparse
import os
import sys

from trainer.parallel.host_ops import load_ops, missing_for_deepspeed


def main() -> int:
    """Build them; a machine without a compiler trains without DeepSpeed, so that is no error."""
    parser = argparse.ArgumentParser(prog="build_ops", description="Compile DeepSpeed's ops for the host.")
    parser.add_argument("--nvme", action="store_true", help="what reads and writes a disk, too (minutes)")
    options = parser.parse_args()
    missing = missing_for_deepspeed()
    if missing:
        sys.stderr.write(f"no {' and no '.join(missing)}: DeepSpeed will not be used on this machine's CPU\n")
        return 0
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    load_ops(["ShareMemCommBuilder", *(["CPUAdamBuilder", "AsyncIOBuilder"] if options.nvme else [])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
