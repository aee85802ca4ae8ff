"""`python -m trainer.cli train|data|chat|sample|merge|new-model ...`: the trainer's commands. Heavy libraries load
inside them."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.chat.options import add_chat_options, add_sample_options
from trainer.errors import ConfigError, TrainError
from trainer.export.commands import add_options as add_merge_options
from trainer.export.commands import run as run_merge
from trainer.node.exit_files import leave_report, open_report
from trainer.node.output import complain, mark_lines, quiet
from trainer.node.stop import Stop


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (see trainer.errors)."""
    parser = argparse.ArgumentParser(prog="trainer.cli", description="Fine-tune a chat model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("train", "train and write the results"), ("data", "show the rows as the model sees them")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--config", required=True, type=Path, help="the five sections, as YAML")
        if name == "data":
            _add_data_options(command)
    add_chat_options(commands.add_parser("chat", help="talk with a model"))
    add_sample_options(commands.add_parser("sample", help="answer a file of prompts"))
    add_merge_options(commands.add_parser("merge", help="write the result as a checkpoint for servers"))
    _add_new_model(commands.add_parser("new-model", help="write a checkpoint of random weights"))
    arguments = parser.parse_args(argv)
    try:
        return ACTIONS[arguments.command](arguments)
    except TrainError as error:
        complain(_text(error))
        return error.exit_code


def train(arguments: argparse.Namespace) -> int:
    """Train as the file says, take signals meanwhile, and leave a report of how it ended; returns the exit code."""
    mark_lines(os.environ)
    stop = Stop(_end)
    stop.install()
    open_report(os.environ)
    code, text = 0, ""
    try:
        _train(read_config(arguments.config), stop)
    except TrainError as error:
        code, text = error.exit_code, _text(error)
    except Exception:
        code, text = 1, traceback.format_exc()
    complain(text)
    leave_report(os.environ, code, text)
    return code


def data(arguments: argparse.Namespace) -> int:
    """Show what the pipeline makes of a job's rows; returns the exit code. Raises TrainError."""
    quiet()
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


def new_model(arguments: argparse.Namespace) -> int:
    """Write a new model; returns the exit code. Raises TrainError."""
    quiet()
    from trainer.new_model.seeded import write_model

    try:
        count = write_model(arguments.family, arguments.size, arguments.out, arguments.seed, arguments.tokenizer)
    except KeyboardInterrupt:
        return 130
    print(f"written: {arguments.out} ({arguments.family} {arguments.size}, {count:,} parameters)")
    return 0


def _end(code: int, text: str) -> None:
    """End this process now, whatever its main thread waits for."""
    text = f"error: {text}\n"
    complain(text)
    leave_report(os.environ, code, text)
    os._exit(code)


def answer(arguments: argparse.Namespace) -> int:
    """Talk with a model, or answer a file of prompts; returns the exit code. Raises TrainError."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits an ignored one
    quiet()
    try:
        from trainer.chat import verbs

        code = verbs.chat(arguments) if arguments.command == "chat" else verbs.sample(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `launch sample RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except TrainError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TrainError(
            f"unexpected {type(error).__name__}: {error} ({place.filename}:{place.lineno})", "report it as a defect"
        ) from error


def merge(arguments: argparse.Namespace) -> int:
    """Write what a run has trained as a checkpoint; returns the exit code. Raises TrainError."""
    quiet()
    return run_merge(arguments)


def read_config(path: Path) -> Any:
    """The config of a run. Raises ConfigError."""
    from trainer.config.file import load_config

    return load_config(path)


def _train(config: Any, stop: Stop) -> None:
    if os.environ.get("WORLD_SIZE", "1") == "1":  # of several ranks the first one looks, once the others hear of it
        from trainer.checkpoints.run_folder import RunFolder
        from trainer.node.output import show

        RunFolder(config, os.environ, show).refuse_foreign()  # before torch is loaded, which takes seconds
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost connection fill a page each
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if _without_gpu() else "cuda")
    quiet()
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


def _add_new_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--family", required=True, help="internlm2, internlm, llama, ...")
    command.add_argument("--size", required=True, help="tiny, 7b, ...")
    command.add_argument("--out", required=True, type=Path, help="folder to make")
    command.add_argument("--seed", type=int, default=0, help="another seed gives other weights")
    command.add_argument("--tokenizer", type=Path, help="tokenizer.model, or a folder with a tokenizer")


def _data(config: Any, arguments: argparse.Namespace) -> None:
    from trainer.data.first_rows import Look
    from trainer.data.inspect import inspect_data
    from trainer.data.recognise import with_template
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
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    config, line = with_template(config, tokenizer)
    sys.stderr.write(f"{line}\n" if line else "")
    look = Look(arguments.rows, arguments.dump or 0)
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
        complain("".join(f"{line}\n" for line in found.summary))
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


ACTIONS = {"train": train, "data": data, "chat": answer, "sample": answer, "merge": merge, "new-model": new_model}


if __name__ == "__main__":
    code = main()
    # libraries that wait for their peers at exit would wait for ever, and threads in torch's own code abort the process
    sys.stdout.flush()
    os._exit(code)
