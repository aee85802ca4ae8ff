"""TrainConfig + world size -> DeepSpeed's JSON. Pure."""

from typing import Any

from trainer.config import TrainConfig


def build_ds_config(config: TrainConfig, world: int, *, on_cpu: bool) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None without DeepSpeed. (Keys: deepspeed.ai/docs/config-json.)"""
    optimizer, settings = config.optimizer, config.optimizer.deepspeed
    if settings is None:
        return None
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.zero_stage >= 1 and settings.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if settings.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.accumulation,
        "train_batch_size": optimizer.batch_size * optimizer.accumulation * world,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the trainer prints its own step line
    }
