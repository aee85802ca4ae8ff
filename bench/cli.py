"""How long `launch --help` and an offline `launch render` take beside TorchX, which gets a venv of its own.

Prints a table, and as its last line one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

TORCHX = "torchx[kubernetes]"
JOB = """\
name: bench
image: registry.example.com/team/trainer:0.1
resources: {nodes: 2, gpus_per_node: 8, cpus_per_node: 64, memory_per_node: 512Gi}
train:
  model: {path: internlm/internlm2-chat-7b}
  data: {sources: [{path: rows.jsonl}]}
"""
KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: stub
clusters: [{name: stub, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: stub, context: {cluster: stub, user: stub, namespace: default}}]
users: [{name: stub, user: {}}]
"""


def main() -> None:
    """Install, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="folder for TorchX; kept, and used again (default: a temporary one)")
    parser.add_argument("--runs", type=int, default=10, help="measurements of each command (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torchx = install_torchx(options.venv or Path(folder) / "torchx")
        medians = measure(commands(torchx), prepare(Path(folder)), options.runs)
    report(medians)


def install_torchx(folder: Path) -> Path:
    """The `torchx` program in a venv at `folder`."""
    program = folder / "bin/torchx"
    if not program.exists():
        print(f"installing {TORCHX} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", TORCHX], check=True)
    return program


def commands(torchx: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    launch = str(Path(sys.executable).parent / "launch")
    dryrun = ["run", "--dryrun", "-s", "kubernetes", "--workspace=", "-cfg", "queue=default"]
    return {
        "launch --help": [launch, "--help"],
        "torchx --help": [str(torchx), "--help"],
        "launch render": [launch, "render", "job.yaml", "--backend", "kubernetes"],
        "torchx run --dryrun": [str(torchx), *dryrun, "dist.ddp", "-j", "2x8", "--script", "x.py"],
    }


def prepare(folder: Path) -> Path:
    """A working folder with a job, a script and a kubeconfig that leads nowhere."""
    work = folder / "work"
    work.mkdir()
    (work / "job.yaml").write_text(JOB)
    (work / "x.py").write_text("print(1)\n")
    (work / "kubeconfig").write_text(KUBECONFIG)
    return work


def measure(named: dict[str, list[str]], work: Path, runs: int) -> dict[str, float]:
    """Median seconds of each command; the commands take turns, so that a busy moment hits all of them."""
    environ = {**os.environ, "KUBECONFIG": str(work / "kubeconfig"), "HOME": str(work), "LAUNCH_HOME": str(work / "l")}
    times: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(runs + 1):  # the first fills the disk cache
        for name, argv in named.items():
            start = time.perf_counter()
            subprocess.run(argv, cwd=work, env=environ, capture_output=True, check=True)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(medians: dict[str, float]) -> None:
    """A table for people, and one JSON line."""
    for name, seconds in medians.items():
        print(f"{name:22} {seconds * 1000:8.0f} ms")
    help_ratio = medians["launch --help"] / medians["torchx --help"]
    render_ratio = medians["launch render"] / medians["torchx run --dryrun"]
    print(f"{'help, launch/torchx':22} {help_ratio:8.2f}    (target: at most 0.6)")
    print(f"{'render, launch/torchx':22} {render_ratio:8.2f}    (target: at most 0.4)")
    print(json.dumps({"help_ratio": round(help_ratio, 3), "render_ratio": round(render_ratio, 3),
                      "median_s": {name: round(seconds, 4) for name, seconds in medians.items()}}))


if __name__ == "__main__":
    main()
