"""launch chat: talk with a model, or with what a run has trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launcher.services.model_options import answer, find_model, model_options

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("chat")
@click.argument("model", required=False, metavar="[MODEL_OR_RUN]")
@model_options
@click.option("--image", "images", type=FILE, multiple=True, metavar="FILE",
              help="Show the model this image with the first question; may be repeated.")
@click.option("--system", metavar="TEXT", help="System message. Default: the one that the run's data began with.")
@click.option("--tools", type=FILE, metavar="FILE.json", help="Functions that the model may call, as OpenAI's API "
              "takes them. A call is shown, and what you type next is its result.")
@click.option("--once", metavar="PROMPT", help="Print the answer to this alone, and end; `-` reads it from stdin. A "
              "call of a function is printed as JSON.")
@click.option("--compose", metavar="INSTRUCTION", help="Have an article written, with pictures where the model wants "
              "them, and end; needs --images and --to, and a model that sees images.")
@click.option("--images", "pictures", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="The pictures that --compose chooses from.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="File of the article: .md, which links to the pictures, or .html, which holds them.")
@click.option("--stats", is_flag=True, help="After each answer its tokens, their speed and the time to the first.")
def command(model: str | None, wishes: Mapping[str, Any], images: tuple[Path, ...], pictures: Path | None,
            stats: bool, **more: Any) -> None:
    """MODEL_OR_RUN is a folder (a model, an adapter, the output of a run) or a name on the hub, or a run's id, its
    start, or handle; the latest run when left out. Of a run all comes from its config: base, quantisation, template,
    system message, sampling; it may still be training. Without a terminal, each line of stdin is a message. /help in
    the chat lists its commands. Answers go to stdout, all else to stderr; needs the trainer."""
    flags = [f"--image={path.absolute()}" for path in images] + (["--stats"] if stats else [])
    answer("chat", find_model(model), {**wishes, **more, "images": pictures}, flags)
