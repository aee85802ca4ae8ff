"""What `chat` and `sample` share: which model is meant, how it answers, and the trainer that does it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from launcher.errors import NotFoundError
from launcher.services.trainer_process import Place, find_place, option_words, run_trainer
from trainer.config.job import TemplateName

Command = Callable[..., Any]
FOLDER = click.Path(file_okay=False, path_type=Path)


def model_options(command: Command) -> Command:
    """The options of how a model is held and answers, handed to the command as one mapping `wishes`."""
    options = (
        click.option("--adapter", type=FOLDER, metavar="DIR", help="Put this adapter on the model; may be the output "
                     "folder of the run that trained it, whose template then holds."),
        click.option("--template", type=click.Choice(get_args(TemplateName)), metavar="NAME",
                     help="Chat template. Default: that of the run; of other folders the one that their chat_template "
                     "is found to be, or `tokenizer`, or the family's."),
        click.option("--quantization", type=click.Choice(["nf4", "int8", "none"]),
                     help="How linear layers are held. Default: as the run trained; of other models none."),
        click.option("--dtype", type=click.Choice(["bf16", "fp32"]),
                     help="Precision of what is not quantised. Default: the run's, or bf16."),
        click.option("--temperature", type=click.FloatRange(0, 10), metavar="T",
                     help="0 always takes the likeliest token. Defaults of these four: runtime.sampling of the run, "
                     "else those of docs/config.md."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P",
                     help="Draw from the likeliest tokens of this total probability."),
        click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw from this many likeliest tokens."),
        click.option("--max-new-tokens", type=click.IntRange(1, 2**17), metavar="N", help="Longest answer in tokens."),
        click.option("--repetition-penalty", type=click.FloatRange(0, 10, min_open=True), metavar="F",
                     help="Divide the scores of tokens that are there already by this. Default: 1, which changes "
                     "nothing."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N",
                     help="Draw the same answers again. Default: others each time."),
    )
    names = ("adapter", "template", "quantization", "dtype", "temperature", "top_p", "top_k", "max_new_tokens",
             "repetition_penalty", "seed")

    @functools.wraps(command)
    def with_wishes(**given: Any) -> Any:
        wishes = {name: given.pop(name) for name in names}
        return command(wishes=wishes, **given)

    decorated: Command = with_wishes
    for decorate in reversed(options):
        decorated = decorate(decorated)
    return decorated


def find_model(reference: str | None) -> Place:
    """As `find_place`; what is neither a folder nor a run may be a name on the hub. Raises LaunchError."""
    place = find_place(reference)
    if place is not None:
        return place
    name = str(reference)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Place(name)
    raise NotFoundError(f"{name!r} is neither a folder that exists, nor a run, nor a name on the hub (owner/name)",
                        "list the runs: launch list")


def answer(verb: str, place: Place, options: Mapping[str, Any], flags: Sequence[str] = ()) -> None:
    """Run `chat` or `sample` of the trainer; options that are None are left to it."""
    run_trainer(verb, [place.path, *option_words({"job_dir": place.job_dir, **options}), *flags])
