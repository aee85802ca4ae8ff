"""What the engine trains: tokenizer and model of a job, and how the result is written."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.chat.answer import stop_ids
from trainer.checkpoints.results import result_name
from trainer.checkpoints.run_folder import own
from trainer.config.job import TrainConfig
from trainer.data.bad_rows import BadRows
from trainer.data.conversations import read_conversations
from trainer.data.report import Report
from trainer.data.templates import find_template
from trainer.models.attention import is_plain, takes_cu_seqlens, use_varlen
from trainer.models.experts import expert_parameters
from trainer.models.load import DTYPES, load_model
from trainer.models.lora import attach_lora, save_adapter
from trainer.models.tokenizer import load_tokenizer
from trainer.new_model.create import new_model, save_internlm2, train_tokenizer
from trainer.node.files import replace_text
from trainer.parallel.ds_config import zero_stage
from trainer.parallel.partition import Partition, full_size, is_partitioned


def open_tokenizer(config: TrainConfig) -> Any | None:
    """The tokenizer of the job's model, None for a new model, which has none yet. Raises ConfigError."""
    return None if config.model.path is None else load_tokenizer(config.model.path, config.model.revision)


def new_tokenizer(config: TrainConfig, output: Path, is_main: bool, barrier: Callable[[], None]) -> Any:
    """A new model's tokenizer, which rank 0 trains on the job's texts first. Raises ConfigError."""
    folder = output / "model"
    if is_main and not (folder / "tokenizer.model").exists():
        train_tokenizer(_texts(config), config.model.shape.vocab_size, own(folder))
    barrier()
    return load_tokenizer(str(folder))


def build_model(config: TrainConfig, device: torch.device, ds_config: dict[str, Any] | None = None) -> Any:
    """The model on its device, with its adapter when it gets one, ready to train; in ZeRO-3 the part of this rank.
    Raises ConfigError."""
    made = config.model.init is not None
    split = Partition(ds_config) if ds_config and zero_stage(ds_config) == 3 else None
    model = (
        new_model(config.model.shape, config.settings.seed).to(device) if made else load_model(config, device, split)
    )
    if takes_cu_seqlens(config.model.dtype, device) and is_plain(model.config, config.data.max_length):
        use_varlen(model)
    if made:
        return model
    if config.model.lora is None:
        # DeepSpeed makes the float32 copies of a split model, whose weights it takes as they are
        return (model if is_partitioned(model) else model.float()).requires_grad_(True)
    base_is_split = is_partitioned(model)
    model = attach_lora(model, config.model.lora, str(config.model.path))
    if base_is_split:  # as it does with a whole one
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(DTYPES[config.model.dtype])
    return model


def parameters_line(model: Any) -> str:
    """How many parameters there are and how many are trained (4-bit layers count their real ones)."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += math.prod(state.shape) if state is not None else full_size(parameter)
    experts = expert_parameters(model) if hasattr(model, "peft_config") else 0
    told = f"; {experts:,} are in experts, which stay as they are, without an adapter" if experts else ""
    return f"model: {total:,} parameters, {trained_size(model):,} of them trained{told}"


def trained_size(model: Any) -> int:
    """How many parameters are trained, on all ranks together."""
    return sum(full_size(parameter) for parameter in model.parameters() if parameter.requires_grad)


def save_result(trainer: Any, config: TrainConfig, tokenizer: Any, output: Path, is_main: bool) -> None:
    """adapter/ or model/; every rank takes part, rank 0 writes."""
    if config.model.lora is not None and is_partitioned(trainer.model):  # of the base no rank has more than its part
        weights = trainer.model_wrapped._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not is_main:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    own(output / result_name(config))
    if config.model.lora is not None:
        save_adapter(model, weights, output)
        return
    weights = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in weights.items()}
    template = find_template(config.model.chat_template, tokenizer)
    if config.model.init == "internlm2":
        save_internlm2(weights, model.config, output / "model", stop_ids(tokenizer, template.stop))
    else:
        model.save_pretrained(output / "model", state_dict=weights)
        tokenizer.save_pretrained(output / "model")
    # servers and launch data find the text form of training here
    replace_text(output / "model/chat_template.jinja", template.jinja())


def _texts(config: TrainConfig) -> Iterator[str]:
    """Every line of every message; bad rows are told by the pipeline, which comes next."""
    report = Report()
    for mapped in read_conversations(config, report, BadRows(report, Path(os.devnull), skip=True)):
        for message in mapped.conversation.messages:
            yield from message.content.splitlines()
