"""A trainer without a model, for drills: one process a node, the trainer's log lines, saves, exit codes and agreement
at a stop, in a twentieth of a second a step. TOY_FAULT breaks one promise: `skip`, `reshuffle`, `repeat`, `deaf`.
"""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import yaml

ROWS = 1000
STEP_S = 0.05
PEER_START_S, PEER_STEP_S = 60, 3


def write_toy(folder: Path) -> Path:
    """This file as a program that takes the place of `python` in a profile."""
    program = folder / "toy-python"
    here = map(shlex.quote, (sys.executable, __file__))
    program.write_text(f'#!/bin/sh\nexec {" ".join(here)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def meet(folder: Path, name: str, told: list[int], wait_s: float) -> bool:
    """Wait for all ranks; whether one of them was told to stop. Ends the process when a rank does not come."""
    rank, world = int(os.environ["RANK"]), int(os.environ["LAUNCH_NODES"])
    (folder / f".{name}.{rank}").write_text("stop" if told else "go", encoding="utf-8")
    (folder / f".{name}.{rank}").replace(folder / f"{name}.{rank}")
    deadline = time.monotonic() + wait_s
    while len(found := list(folder.glob(f"{name}.*"))) < world:
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.01)
    return any(path.read_text(encoding="utf-8") == "stop" for path in found)


def rows(step: int, rank: int, *, again: bool) -> str:
    """Two rows a step and rank, each once."""
    first = 4 * step + 2 * rank + (500 if again and os.environ.get("TOY_FAULT") == "reshuffle" else 0)
    return f"{first} {4 if os.environ.get('TOY_FAULT') == 'repeat' else first + 1}"


def train(config: dict) -> None:
    """To the end, or to the agreed stop."""
    folder, rank = Path(config["settings"]["output_dir"]), int(os.environ["RANK"])
    folder.mkdir(parents=True, exist_ok=True)
    attempt = len(list(folder.glob(f"start-*.{rank}")))
    fault, told = os.environ.get("TOY_FAULT"), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1) if fault == "deaf" else told.append(1))
    meet(folder, f"start-{attempt}", told, PEER_START_S)
    saved = folder / "saved"
    start = int(saved.read_text(encoding="utf-8")) if saved.exists() else 0
    if rank == 0:
        print(f"data: {ROWS} rows read, {ROWS} conversations kept, 9 tokens, 50% of them trained", flush=True)
    if rank == 0 and start:
        print(f"resuming from {folder}/checkpoint-{start} (step {start})", flush=True)
    for step in range(start + 1 + (fault == "skip" and attempt > 0), config["optimizer"]["max_steps"] + 1):
        time.sleep(STEP_S)
        stop = meet(folder, f"{attempt}-{step}", told, PEER_STEP_S)
        print(f"rows {step}  rank {rank}  {rows(step, rank, again=attempt > 0)}", flush=True)
        if rank == 0 and (stop or step % config["runtime"]["save_every"] == 0):
            saved.write_text(str(step), encoding="utf-8")
            print(f"saved {folder}/checkpoint-{step} (step {step})", flush=True)
        if stop:
            meet(folder, f"{attempt}-stop", told, PEER_STEP_S)
            sys.exit(75)


if __name__ == "__main__":
    if "trainer.node.entrypoint" in sys.argv:  # what it starts looks as torchrun's workers do
        os.execve(sys.executable, [sys.executable, __file__, "trainer.cli", sys.argv[-1]],
                  {**os.environ, "RANK": os.environ["NODE_RANK"]})
    train(yaml.safe_load(Path(sys.argv[-1]).read_text(encoding="utf-8")))
