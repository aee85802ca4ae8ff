"""launch merge: a run's result as a checkpoint that servers load."""

import os
from pathlib import Path

import click

from launcher.errors import NotFoundError, SpecError
from launcher.runs.record import Run
from launcher.services.options import run_argument, run_store
from launcher.services.trainer_process import find_place, option_words, run_trainer


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
    """RUN: an id, its start, a handle, a trainer's output folder or a checkpoint-N in it; the latest run when left out.
    The adapter is added to the base that it was trained for, in bf16, a few rows at a time; beside the weights come
    tokenizer, chat template and the stop tokens of training. Needs the trainer: pip install 'launch-trainer[train]'."""
    place = find_place(run)
    if place is None:
        raise NotFoundError(f"{run!r} is neither a folder that exists nor a run", "list the runs: launch list")
    if place.run is not None:
        _require_end(place.run)
    options = {"to": target, "job_dir": place.job_dir, "layout": layout, "gguf": gguf, "no_check": no_check,
               "adapter_only": adapter_only}
    run_trainer("merge", [place.path, *option_words(options)], mistake="nothing was merged (see above)")


def _require_end(run: Run) -> None:
    from launcher.backends.registry import load_backend
    from launcher.services.ends import status_of

    store = run_store()
    state = status_of(load_backend(run.backend, store, dict(os.environ)), store, run).state
    if not state.ended and state.value != "unknown":
        raise SpecError(f"{run.run_id}: the run is {state}; only one that has ended can be merged",
                        f"wait for it: launch logs -f {run.run_id}; or name a checkpoint-N folder of its output")
