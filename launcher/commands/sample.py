"""launch sample: the answers of a model to a file of prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launcher.services.model_options import answer, find_model, model_options


@click.command("sample")
@click.argument("model", required=False, metavar="[MODEL_OR_RUN]")
@click.option("--prompts", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="One prompt a line, or JSON lines: {prompt} or {messages}, with system, tools and expect (the "
              "answer as taught, counted in the score).")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the answers there, whole or not at all; the same command goes on where it was interrupted. "
              "Default: stdout.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=8, show_default=True, metavar="N",
              help="Prompts answered at once.")
@click.option("--system", metavar="TEXT", help="System message of prompts that have none.")
@model_options
def command(model: str | None, wishes: Mapping[str, Any], **more: Any) -> None:
    """JSON lines in the order of the file: each prompt's own fields, `answer`, tool_calls if it calls functions, and
    `exact` where it had `expect`; the score goes to stderr. MODEL_OR_RUN as for `launch chat`."""
    answer("sample", find_model(model), {**wishes, **more})
