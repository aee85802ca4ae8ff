"""`python -m trainer.build_ops`: compile DeepSpeed's CPU communication op now instead of at the first training run."""

import os
import sys

from trainer.dist import load_ops, missing_for_deepspeed


def main() -> int:
    """Build it; a machine without a compiler trains without DeepSpeed, so that is no error."""
    missing = missing_for_deepspeed()
    if missing:
        sys.stderr.write(f"no {' and no '.join(missing)}: DeepSpeed will not be used on this machine's CPU\n")
        return 0
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    load_ops(["ShareMemCommBuilder"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
