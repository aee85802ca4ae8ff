"""`python -m trainer.cli train|data --config FILE` and `merge OUTPUT --to DIR`: the trainer's commands. Heavy libraries
load inside them."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, TrainError
from trainer.export.commands import add_options as add_merge_options
from trainer.export.commands import run as merge
from trainer.output import mark_lines
from trainer.output import quiet as _quiet
from trainer.reports import leave_report, open_report
from trainer.stop import Stop


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (see trainer.errors)."""
    parser = argparse.ArgumentParser(prog="trainer.cli", description="Fine-tune a chat model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("train", "train and write the results"), ("data", "show the rows as the model sees them")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--config", required=True, type=Path, help="the five sections, as YAML")
        if name == "data":
            _add_data_options(command)
    add_merge_options(commands.add_parser("merge", help="write the result as a checkpoint for servers"))
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "merge":
            _quiet()
            return merge(arguments)
        return train(arguments.config) if arguments.command == "train" else data(arguments)
    except TrainError as error:
        sys.stderr.write(_text(error))
        return error.exit_code


def train(path: Path) -> int:
    """Train as the file says, take signals meanwhile, and leave a report of how it ended; returns the exit code."""
    mark_lines(os.environ)
    stop = Stop(_end)
    stop.install()
    open_report(os.environ)
    code, text = 0, ""
    try:
        _train(read_config(path), stop)
    except TrainError as error:
        code, text = error.exit_code, _text(error)
    except Exception:
        code, text = 1, traceback.format_exc()
    sys.stderr.write(text)
    leave_report(os.environ, code, text)
    return code


def data(arguments: argparse.Namespace) -> int:
    """Show what the pipeline makes of a job's rows; returns the exit code. Raises TrainError."""
    _quiet()
    try:
        _data(read_config(arguments.config), arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit):  # `launch data JOB.yaml | head`, of which rich makes the second
        # what is left to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _end(code: int, text: str) -> None:
    """End this process now, whatever its main thread waits for."""
    text = f"error: {text}\n"
    sys.stderr.write(text)
    leave_report(os.environ, code, text)
    os._exit(code)


def read_config(path: Path) -> Any:
    """The config of a run, checked with the same models as the launcher's. Raises ConfigError."""
    import yaml
    from pydantic import ValidationError

    from trainer.config import SCHEMA_VERSION, TrainConfig

    try:
        config = TrainConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError(
            "\n".join(lines), f"this trainer reads schema {SCHEMA_VERSION}; use the image of the launcher's version"
        ) from error
    sys.stderr.write(f"trainer: schema {SCHEMA_VERSION}\n")
    return config


def _train(config: Any, stop: Stop) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost connection fill a page each
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if _without_gpu() else "cuda")
    _quiet()
    from trainer.engine import Run

    Run(config, stop, _end).run()
    _say_goodbye()


def _say_goodbye() -> None:
    """End the process group in order; after an error the peers may be gone, and nobody waits for them."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rows", type=int, default=1, help="how many first rows to show at every stage")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="print one JSON object instead")
    instead.add_argument("--dump", type=int, help="print so many samples as JSON lines instead")
    command.add_argument("--html", type=Path, help="write a page, too")
    command.add_argument("--rejects", type=Path, help="write the rejected rows as JSON lines, too")


def _data(config: Any, arguments: argparse.Namespace) -> None:
    from trainer.data.first_rows import Look
    from trainer.data.inspect import inspect_data
    from trainer.data.show import Progress
    from trainer.models.tokenizer import load_tokenizer

    if config.model.path is None:
        raise ConfigError(
            "model.init: got a model without tokenizer, allowed: model.path",
            "train it first, then name its folder in model.path",
        )
    for option, path in (("--html", arguments.html), ("--rejects", arguments.rejects)):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{option}: got {path}, allowed: a file in a folder that exists")
    tokenizer, look = load_tokenizer(config.model.path), Look(arguments.rows, arguments.dump or 0)
    with tempfile.TemporaryDirectory() as folder:
        with Progress(sys.stderr) as progress:
            found = inspect_data(config, tokenizer, Path(folder), look, progress.tell)
        _show_data(found, Path(folder), arguments)
    if found.problem:
        raise ConfigError(found.problem, "perhaps data.max_length is too small, or the format is another one")


def _show_data(found: Any, folder: Path, arguments: argparse.Namespace) -> None:
    from trainer.data.inspect import DUMPED, REJECTED
    from trainer.data.page import render_page
    from trainer.data.show import show

    if arguments.rejects:
        _keep(folder / REJECTED, arguments.rejects)
    if arguments.html:
        (folder / "page.html").write_text(render_page(found), encoding="utf-8")
        _keep(folder / "page.html", arguments.html)
    if arguments.json:
        print(json.dumps(asdict(found), ensure_ascii=False))
    elif arguments.dump is None:
        show(found, sys.stdout)
    else:
        sys.stderr.writelines(f"{line}\n" for line in found.summary)
        with (folder / DUMPED).open(encoding="utf-8") as file:
            shutil.copyfileobj(file, sys.stdout)


def _keep(found: Path, path: Path) -> None:
    """Copy a file to where the user wants it; a reader sees the old one or all of the new one. Raises ConfigError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(found, part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    sys.stderr.write(f"written: {path}\n")


def _without_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _text(error: TrainError) -> str:
    lines = [f"error: {line}" for line in error.message.splitlines()]
    return "\n".join([*lines, *([f"hint:  {error.hint}"] if error.hint else []), ""])


if __name__ == "__main__":
    code = main()
    # libraries that wait for their peers at exit would wait for ever, and threads in torch's own code abort the process
    sys.stdout.flush()
    os._exit(code)
