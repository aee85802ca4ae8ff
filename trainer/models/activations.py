"""How the layers of a model are run in training: through the fused ones where the model has their shape, with the
activations that the job or the GPU's memory asks for."""

from collections.abc import Callable
from typing import Any

import torch

from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.fused.apply import obstacle, use_fused_layers
from trainer.fused.checkpointing import policy_named
from trainer.fused.head import has_plain_head, use_summed_loss
from trainer.node.ranks import Place
from trainer.sizing.estimate import Job, Placement, Policy, activation_policy, shape_of_config

FLOAT8_SINCE, FLOAT8_WIDTH = (8, 9), 16


def find_policy(config: TrainConfig, model: Any, place: Place) -> Policy:
    """What is kept for the backward pass, by the estimate of this model on this GPU."""
    try:
        shape = shape_of_config(model.config.to_dict())
    except ValueError:  # a family that the estimate does not know
        return "none" if config.model.gradient_checkpointing in {False, "none"} else "full"
    card = None if place.on_cpu else torch.cuda.get_device_properties(place.device).total_memory
    return activation_policy(Job(config, shape, Placement(1, place.world, on_gpu=not place.on_cpu), card))


def prepare_layers(config: TrainConfig, model: Any, place: Place, tell: Callable[[str], None]) -> bool:
    """Make the model's layers ready to train. Returns whether transformers has to checkpoint them."""
    policy = find_policy(config, model, place)
    problem = obstacle(model)
    if config.model.compute == "fp8":
        _require_float8(problem, model, place)
    if problem is None:
        use_fused_layers(model, policy_named(policy, place.device), float8=config.model.compute == "fp8")
        if not place.on_cpu:
            torch.cuda.empty_cache()  # the adapters' matrices have moved into larger ones
        tell(f"layers: fused, gradient checkpointing {policy}{', products in fp8' if config.model.compute else ''}")
        return False
    if has_plain_head(model):
        use_summed_loss(model)
    # the estimate behind `auto` is of fused layers, which take less
    checkpoints = policy != "none" or (config.model.gradient_checkpointing == "auto" and not place.on_cpu)
    tell(f"layers: those of transformers ({problem}), gradient checkpointing {'full' if checkpoints else 'none'}")
    return checkpoints


def _require_float8(problem: str | None, model: Any, place: Place) -> None:
    """Raise ConfigError unless the layers' products can be in FP8 here."""
    if problem is None and not place.on_cpu and torch.cuda.get_device_capability(place.device) < FLOAT8_SINCE:
        problem = f"{torch.cuda.get_device_name(place.device)} has no FP8"
    widths = {width for layer in model.modules() if isinstance(layer, torch.nn.Linear)
              for width in (layer.in_features, layer.out_features)}  # fmt: skip
    odd = sorted(width for width in widths if width % FLOAT8_WIDTH)
    if problem is None and odd:
        problem = f"a layer is {odd[0]} wide"
    if problem is not None:
        raise ConfigError(
            f"model.compute: got fp8, but {problem}; allowed: layers that the trainer fuses, with widths that are "
            f"multiples of {FLOAT8_WIDTH}, on a GPU of compute capability 8.9 or newer",
            "leave model.compute out",
        )
