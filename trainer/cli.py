"""`python -m trainer.cli train|data --config FILE`: the trainer's commands. Heavy libraries load inside them."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, TrainError
from trainer.output import mark_lines


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
    mark_lines(os.environ)
    try:
        config = read_config(arguments.config)
        code = 0
        if arguments.command == "train":
            _train(config)
        else:
            _data(config, arguments.dump)
    except TrainError as error:
        code = _report(error)
    _leave_code(code)
    return code


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


def _train(config: Any) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if _without_gpu() else "cuda")
    _quiet()
    from trainer.engine import Run

    Run(config).run()
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


def _report(error: TrainError) -> int:
    for line in error.message.splitlines():
        sys.stderr.write(f"error: {line}\n")
    if error.hint:
        sys.stderr.write(f"hint:  {error.hint}\n")
    return error.exit_code


def _leave_code(code: int) -> None:
    """torchrun ends with 1 whatever its workers return; the entrypoint reads this file instead."""
    folder = os.environ.get("LAUNCH_EXIT_FILES")
    if folder and Path(folder).is_dir():
        (Path(folder) / f"rank-{os.environ.get('RANK', '0')}").write_text(str(code))


if __name__ == "__main__":
    sys.exit(main())
