"""A run's result -> a checkpoint that servers load. Weights are streamed from the base to the new files with the
adapter added on the way; tokenizer, comparison and GGUF come after, in a process of their own, which needs more memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoints.results import Trained
from trainer.errors import ConfigError
from trainer.export.adapter import Adapter
from trainer.export.child_process import apart
from trainer.export.gguf_file import GgufType, check_exportable, write_gguf
from trainer.export.layout import Layout, Weights, choose, model_config, written, written_config
from trainer.export.part import check_target, new_folder
from trainer.export.shards import size_of, write_checkpoint
from trainer.export.stored import checkpoint_weights
from trainer.families.registry import find_family
from trainer.models.hub import checkpoint_folder, read_config, read_raw_config

CONFIG_ROOM = 2**28  # for tokenizer and configs


@dataclass(frozen=True)
class Options:
    """What is asked for. `gguf`: the number type of a GGUF file beside the checkpoint, if any."""

    layout: Layout = "auto"
    gguf: GgufType | None = None
    check: bool = True


@dataclass(frozen=True)
class Plan:
    """A checkpoint to write. `config`: its config.json; `base`: the folder of the one that it is made of."""

    trained: Trained
    base: Path
    weights: Weights
    config: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(map(size_of, self.weights.values()))


def merge(trained: Trained, target: Path, options: Options, tell: Callable[[str], None]) -> None:
    """Write the merged checkpoint into the folder `target`, whole or not at all. Raises ConfigError, TrainError."""
    check_target(target.absolute())
    plan = make_plan(trained, options.layout)
    if options.gguf:
        check_exportable(plan.config, plan.base)
    tell(f"merge: {plan.bytes / 1e9:.2f} GB in the layout of {plan.config['model_type']}, bf16")
    with new_folder(target, plan.bytes * (2 if options.gguf else 1) + CONFIG_ROOM) as part:
        write_checkpoint(plan.weights, part)
        tell("merge: weights are written; now tokenizer" + (" and comparison" if options.check else ""))
        rest = (trained, plan.base, plan.config, part, options, target.name)
        for line in apart(finish, *rest):
            tell(line)
    tell(f"merged: {target.absolute()}")


def make_plan(trained: Trained, layout: Layout) -> Plan:
    """Read what is there and see whether it fits together; no weight is read yet. Raises ConfigError."""
    base = checkpoint_folder(trained.base, trained.revision)
    raw, known = mergeable_config(base), read_config(base)
    family = find_family(known)
    config = model_config(known, family)
    chosen = choose(layout, known, config)
    adapter = Adapter(trained.adapter) if trained.adapter else None
    if adapter and raw.get("tie_word_embeddings"):
        _check_tied(adapter)
    keep = adapter.on if adapter else lambda name, weight: weight
    weights = written(chosen, checkpoint_weights(base), family, config, keep)
    if adapter:
        adapter.refuse_unused()
    return Plan(trained, base, weights, written_config(chosen, raw, config))


def finish(
    trained: Trained, base: Path, config: dict[str, Any], part: Path, options: Options, name: str
) -> list[str]:
    """Write what stands beside the weights in `part`, and compare; returns what is to be said. Raises TrainError."""
    from trainer.export.check import check_drift
    from trainer.export.companions import write_companions

    write_companions(part, config, base, trained.config.model.chat_template)
    lines = [check_drift(trained, part, base).line()] if options.check else []
    if options.gguf:
        path = part / f"{name}-{options.gguf}.gguf"
        write_gguf(part, path, options.gguf)
        lines.append(f"gguf: {path.name} ({path.stat().st_size / 1e9:.2f} GB)")
    return lines


def mergeable_config(base: Path) -> dict[str, Any]:
    """config.json as it is, of a checkpoint that can be merged into. Raises ConfigError."""
    raw = read_raw_config(base)
    if raw.get("quantization_config"):
        raise ConfigError(f"{base}: its weights are quantised, allowed: a checkpoint in bf16, fp16 or fp32",
                          "name the one that it was made of in model.path")  # fmt: skip
    return raw


def _check_tied(adapter: Adapter) -> None:
    """The head and the embedding are one tensor there; trained apart, they could not be."""
    apart = [name for name in adapter.tensors if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    if apart:
        raise ConfigError(f"{adapter.folder}: {apart[0]} was trained, but the base ties its embedding to its head",
                          "train without modules_to_save")  # fmt: skip
