"""launch merge: a run's result as a checkpoint that servers load."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.commands.options import run_argument, run_store
from launcher.edge.shell import run_through
from launcher.errors import JobFailedError, NotFoundError, SpecError

if TYPE_CHECKING:
    from launcher.runs import Run

CONFIG_ERROR, INTERRUPTED = 78, 130  # trainer/errors.py


@click.command("merge")
@run_argument
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to make; it is there whole or not at all.")
@click.option("--layout", type=click.Choice(["auto", "llama", "internlm2"]), default="auto", show_default=True,
              help="Names and shapes of the weights. auto: Llama's for InternLM 1, 2, 2.5 and 3, which every server "
              "runs, else the base's own. internlm2: fused wqkv, for InternLM2's own code.")
@click.option("--gguf", type=click.Choice(["bf16", "f16", "q8_0"]), is_flag=False, flag_value="bf16",
              help="Write a file for llama.cpp, too, in these numbers (bf16 when none are named).")
@click.option("--no-check", is_flag=True, help="Do not compare the merged model's logits with the adapter's.")
@click.option("--adapter-only", is_flag=True,
              help="Merge nothing: write the adapter in the form of --layout (q, k, v apart, or wqkv).")
def command(run: str | None, target: Path, layout: str, gguf: str | None, no_check: bool, adapter_only: bool) -> None:
    """RUN: an id, a handle, a trainer's output folder or a checkpoint-N in it; the latest run when left out. The
    adapter is added to the base that it was trained for, in bf16, a few rows at a time; beside the weights come
    tokenizer, chat template and the stop tokens of training. Needs the trainer: pip install 'launch-trainer[train]'."""
    output, folder = _output(run)
    options = [str(output), "--to", str(target.absolute()), "--layout", layout]
    options += [*(["--gguf", gguf] if gguf else []), *(["--no-check"] if no_check else [])]
    _end(_merge([*options, *(["--adapter-only"] if adapter_only else [])], folder))


def _output(run: str | None) -> tuple[Path, Path]:
    """The folder that a run has left, and the one to work in. Raises NotFoundError, SpecError."""
    if run is not None and Path(run).is_dir():
        return Path(run).absolute(), Path.cwd()
    store = run_store()
    found = store.find(run)
    _require_end(found)
    if found.output_dir is None or not Path(found.output_dir).is_dir():
        where = found.output_dir or "a volume of its cluster"
        raise NotFoundError(f"{found.run_id}: its output is in {where}, which cannot be reached from here",
                            "run `launch merge FOLDER --to DIR` where it can, or copy the folder here")
    folder = Path(found.job_dir)
    return Path(found.output_dir), folder if folder.is_dir() else Path.cwd()


def _require_end(run: "Run") -> None:
    from launcher.backends.registry import load_backend

    state = load_backend(run.backend, run_store(), dict(os.environ)).status(run).state  # type: ignore[arg-type]
    if not state.ended and state.value != "unknown":
        raise SpecError(f"{run.run_id}: got a run that is {state}, allowed: one that has ended",
                        f"wait for it: launch logs -f {run.run_id}; or name a checkpoint-N folder of its output")


def _merge(options: Sequence[str], folder: Path) -> int:
    """Run the trainer. A Ctrl-C reaches it too, and it takes a moment to remove what it has begun."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return run_through([sys.executable, "-m", "trainer.cli", "merge", *options], cwd=folder, env=dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)


def _end(code: int) -> None:
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == CONFIG_ERROR:
        raise SpecError("nothing was merged (see above)")
    if code:
        raise JobFailedError(f"the trainer ended with {code}")
