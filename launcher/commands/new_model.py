"""launch new-model: a checkpoint of random weights, for dry runs."""

from pathlib import Path

import click

from launcher.services.trainer_process import option_words, run_trainer


@click.command("new-model")
@click.option("--family", required=True, metavar="NAME",
              help="internlm2, internlm3, internlm (v1), xcomposer2, llama, mistral, qwen2, qwen3, gemma, gemma2, "
              "gemma3_text or phi3.")
@click.option("--size", required=True, metavar="SIZE",
              help="tiny, or one of the family's own, such as 1_8b and 7b; a wrong one lists them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder to make; one that is there must be empty.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="The same seed gives the same weights.")
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FILE",
              help="A tokenizer.model, or a folder with a tokenizer. Default: a small one that knows a few words.")
def command(family: str, size: str, out: Path, seed: int, tokenizer: Path | None) -> None:
    """Config, tokenizer, chat template and seeded random weights in the family's own layout: for tests, benchmarks and
    a dry run on a cluster, where nothing is to be downloaded. Takes some 2 GB of memory, whatever the size; needs the
    trainer: pip install 'launch-trainer[train]'."""
    options = option_words({"family": family, "size": size, "out": out, "seed": seed, "tokenizer": tokenizer})
    run_trainer("new-model", options, mistake=f"{out}: no model was made (see above)")
