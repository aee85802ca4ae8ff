"""The command lines of `trainer.cli chat` and `sample`. Imports nothing heavy."""

import argparse
from pathlib import Path


def add_chat_options(command: argparse.ArgumentParser) -> None:
    """`trainer.cli chat`."""
    _add_model_options(command)
    command.add_argument("--image", dest="images", type=Path, action="append", default=[], help="to talk about")
    command.add_argument("--system", help="the system message")
    command.add_argument("--tools", type=Path, help="JSON file of functions that the model may call")
    command.add_argument("--once", metavar="PROMPT", help="answer this, and end; - reads it from stdin")
    command.add_argument("--compose", metavar="INSTRUCTION", help="write an article with pictures, and end")
    command.add_argument("--images", dest="pictures", type=Path, help="folder of the pictures for --compose")
    command.add_argument("--to", type=Path, help="file of the article: .md or .html")
    command.add_argument("--stats", action="store_true", help="tokens, speed and first token of every answer")


def add_sample_options(command: argparse.ArgumentParser) -> None:
    """`trainer.cli sample`."""
    _add_model_options(command)
    command.add_argument("--system", help="the system message of prompts that have none")
    command.add_argument("--prompts", type=Path, required=True, help="one a line, or JSON lines")
    command.add_argument("--out", type=Path, help="where the answers go; default: stdout")
    command.add_argument("--batch-size", type=int, default=8, help="prompts answered at once")


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="folder of a model, an adapter or a run, or a name on the hub")
    command.add_argument("--job-dir", type=Path, help="what relative paths in the run's config mean")
    command.add_argument("--adapter", type=Path, help="an adapter to put on the model")
    command.add_argument("--template", help="chat template")
    command.add_argument("--quantization", help="nf4, int8 or none")
    command.add_argument("--dtype", help="bf16 or fp32")
    command.add_argument("--temperature", type=float)
    command.add_argument("--top-p", type=float)
    command.add_argument("--top-k", type=int)
    command.add_argument("--max-new-tokens", type=int)
    command.add_argument("--repetition-penalty", type=float, default=1.0)
    command.add_argument("--seed", type=int)
