"""`python -m trainer.cli train|data --config FILE`: the trainer's commands. Heavy libraries load inside them."""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, TrainError
from trainer.output import mark_lines
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
            command.add_argument("--dump", type=int, default=3, help="how many rows to print as JSON lines")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "train":
            return train(arguments.config)
        _data(read_config(arguments.config), arguments.dump)
        return 0
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


def _data(config: Any, count: int) -> None:
    from trainer.data.pipeline import encode_dataset, training_rows
    from trainer.models.tokenizer import load_tokenizer

    if config.model.path is None:
        raise ConfigError(
            "model.init: got a model without tokenizer, allowed: model.path",
            "train it first, then name its folder in model.path",
        )
    samples, report = encode_dataset(config, load_tokenizer(config.model.path))
    training_rows(samples, config, report)
    for line in report.lines(config.data.max_length, config.data.pack):
        sys.stderr.write(line + "\n")
    for sample in samples[:count]:
        print(
            json.dumps(
                {"text": sample.text, "input_ids": sample.input_ids, "labels": sample.labels}, ensure_ascii=False
            )
        )


def _without_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _quiet() -> None:
    """Libraries talk about what users cannot change; warnings of ours are printed by us."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("deepspeed", "DeepSpeed", "torch.distributed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _text(error: TrainError) -> str:
    lines = [f"error: {line}" for line in error.message.splitlines()]
    return "\n".join([*lines, *([f"hint:  {error.hint}"] if error.hint else []), ""])


if __name__ == "__main__":
    code = main()
    # libraries that wait for their peers at exit would wait for ever, and threads in torch's own code abort the process
    sys.stdout.flush()
    os._exit(code)
