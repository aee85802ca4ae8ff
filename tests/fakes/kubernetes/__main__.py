"""The fake cluster on its own, for the suite of a real one: `python -m tests.fakes.kubernetes FOLDER [USER_FOLDER...]`.

Prints the path of its kubeconfig; then each line on stdin is a fault: `lose NODE`, `restore NODE`, `away SECONDS`. Ends
with stdin. The folders after the first are seen by all containers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .cluster import FakeCluster


def main(folder: str, *shared: str) -> None:
    """Serve until stdin ends."""
    with FakeCluster(Path(folder)) as cluster:
        cluster.shared_paths += [Path(path) for path in shared]
        cluster.absent_groups = frozenset()
        print(cluster.kubeconfig, flush=True)
        faults = {"lose": cluster.lose_node, "restore": cluster.restore_node,
                  "away": lambda seconds: cluster.go_away(float(seconds))}
        for line in sys.stdin:
            name, _, argument = line.strip().partition(" ")
            faults[name](argument)


if __name__ == "__main__":
    main(*sys.argv[1:])
