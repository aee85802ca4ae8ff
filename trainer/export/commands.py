"""`python -m trainer.cli merge OUTPUT --to DIR`: the options, and what they lead to. Heavy libraries load inside."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

INTERRUPTED = 130


def add_options(command: argparse.ArgumentParser) -> None:
    """Those of `merge`."""
    command.add_argument("output", type=Path, help="a trainer's output folder, or a checkpoint-N in it")
    command.add_argument("--to", required=True, type=Path, metavar="DIR", help="the folder to make")
    command.add_argument("--job-dir", type=Path, help="what relative paths in the run's config mean")
    command.add_argument("--layout", choices=("auto", "llama", "internlm2"), default="auto",
                         help="form of the weights (default: Llama's for InternLM, else the base's own)")  # fmt: skip
    command.add_argument("--gguf", nargs="?", const="bf16", choices=("bf16", "f16", "q8_0"),
                         help="write a file for llama.cpp, too (default of its numbers: bf16)")  # fmt: skip
    command.add_argument("--no-check", action="store_true", help="do not compare logits with the adapter's")
    command.add_argument("--adapter-only", action="store_true", help="convert the adapter, merge nothing")


def run(arguments: argparse.Namespace) -> int:
    """Merge or convert; returns the exit code. Raises TrainError."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is removed then, too
    try:
        trained = _trained(arguments)
        if arguments.adapter_only:
            _convert(trained, arguments)
        else:
            _merge(trained, arguments)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped: nothing was left at {arguments.to}\n")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _trained(arguments: argparse.Namespace) -> Any:
    """What is to be merged. Raises ConfigError for checkpoints that are no adapter for the base as it is on disk."""
    from trainer.checkpoints.results import describe, find_result

    found = find_result(arguments.output)
    if found.is_checkpoint and not found.is_adapter:
        raise ConfigError(
            f"{found.part}: it has no adapter: of a run that trains all weights only the result can be written",
            f"merge the run's result: {found.output}",
        )
    lora = found.config.model.lora
    if found.is_checkpoint and lora is not None and lora.init == "pissa":
        raise ConfigError(
            f"{found.part}: a PiSSA checkpoint belongs to a base that has lost its largest singular vectors",
            f"merge the run's result: {found.output}; a chat with the checkpoint takes them out of the base again",
        )
    return describe(found, arguments.job_dir)


def _merge(trained: Any, arguments: argparse.Namespace) -> None:
    from trainer.export.merge import Options, merge

    merge(trained, arguments.to, Options(arguments.layout, arguments.gguf, not arguments.no_check), _tell)


def _convert(trained: Any, arguments: argparse.Namespace) -> None:
    from trainer.export.adapters import convert_adapter
    from trainer.export.merge import mergeable_config
    from trainer.models.hub import checkpoint_folder

    if trained.adapter is None or arguments.gguf:
        raise ConfigError("--adapter-only: got a run without adapter, or --gguf, allowed: a LoRA run alone")
    if arguments.layout == "auto":
        raise ConfigError("--layout: got auto with --adapter-only, allowed: llama or internlm2")
    raw = mergeable_config(checkpoint_folder(trained.base, trained.revision))
    heads = raw["num_attention_heads"]
    convert_adapter(trained.adapter, (heads, raw.get("num_key_value_heads") or heads), arguments.layout, arguments.to)
    _tell(f"adapter: {arguments.to.absolute()}")


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
