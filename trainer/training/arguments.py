"""A job's config in the words of transformers' Trainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from trainer.config.job import TrainConfig
from trainer.config.sections import Optimizer
from trainer.errors import ConfigError
from trainer.node.ranks import Place
from trainer.training.optimizer_states import optimizer_name

PEER_TIMEOUT_S = 600  # a lost peer must not hold the others for torch's default of 30 minutes


def training_arguments(
    config: TrainConfig, place: Place, output: Path, deepspeed: dict[str, Any] | None, reports: list[str]
) -> TrainingArguments:
    """The arguments but for the number of steps, which the data decides; from here on the ranks hear of each other.
    `reports`: transformers' integrations that get the numbers."""
    optimizer, runtime, model = config.optimizer, config.runtime, config.model
    return TrainingArguments(
        output_dir=str(output),
        seed=config.settings.seed,
        data_seed=config.settings.seed,
        per_device_train_batch_size=optimizer.batch_size,
        gradient_accumulation_steps=optimizer.accumulation,
        learning_rate=optimizer.lr,
        lr_scheduler_type=scheduler_name(optimizer.schedule),
        lr_scheduler_kwargs=dict(optimizer.schedule_args),
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        max_grad_norm=optimizer.max_grad_norm,
        num_train_epochs=optimizer.epochs,
        max_steps=optimizer.max_steps or -1,
        optim=optimizer_name(optimizer.states, place),
        bf16=model.dtype == "bf16",
        use_cpu=place.on_cpu,
        deepspeed=deepspeed,
        ddp_timeout=PEER_TIMEOUT_S,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=runtime.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # ours does not wait for the device
        accelerator_config={"non_blocking": True},
        save_steps=runtime.save_every,
        report_to=reports,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not place.on_cpu,
        label_names=["labels"],
    )


def scheduler_name(schedule: str) -> str:
    """transformers' name of a schedule: its `constant` knows no warm-up."""
    return "constant_with_warmup" if schedule == "constant" else schedule


def check_schedule(optimizer: Optimizer, warmup_steps: int, steps: int) -> None:
    """Raises ConfigError for arguments that the schedule does not take, or lacks."""
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=optimizer.lr)
    try:
        get_scheduler(scheduler_name(optimizer.schedule), probe, warmup_steps, steps, dict(optimizer.schedule_args))
    except (TypeError, ValueError) as error:
        given = ", ".join(optimizer.schedule_args) or "none"
        raise ConfigError(
            f"optimizer.schedule_args: got {given} for the schedule {optimizer.schedule}, allowed: what transformers' "
            f"schedule of that name takes ({str(error).splitlines()[0]})",
            "see https://huggingface.co/docs/transformers/main_classes/optimizer_schedules",
        ) from error


def stretched_schedule(schedule: str, planned: int, total: int) -> str | None:
    """What becomes of the learning rate when a run that was planned for `planned` steps goes on to `total`; None when
    nothing does."""
    if planned == total:
        return None
    return (
        f"learning rate: the {schedule} schedule now spans {total} steps instead of {planned}, and goes on where it "
        "would be had it done so from the start"
    )
