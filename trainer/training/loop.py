"""transformers' Trainer with our promises: it knows its rows, passes over steps that are not finite, and a checkpoint
has its name only when it is whole."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from trainer.checkpoints.checkpoint import part_folder
from trainer.checkpoints.saver import Saver
from trainer.config.sections import Lora
from trainer.data.order import Order
from trainer.errors import DivergedError
from trainer.fused.flat import link_adapters
from trainer.models.lora import is_of_adapter, lora_plus
from trainer.node.peers import Peers
from trainer.node.ranks import Place
from trainer.parallel.zero_state import has_state, is_by_name, load_state, take_state, write_state
from trainer.training.metrics import StepStatistics
from trainer.training.optimizer_states import PagedAdamW
from trainer.vision.collate import begin_worker, require_images


class RankBatches:
    """The numbers of the rows of each micro-batch of one rank, for a DataLoader."""

    def __init__(self, order: Order, rank: int, world: int, micro_rows: int, steps: int) -> None:
        self.order, self.rank, self.world, self.micro_rows, self.steps = order, rank, world, micro_rows, steps

    def __len__(self) -> int:
        return self.steps * self.order.batch // (self.world * self.micro_rows)

    def __iter__(self) -> Iterator[list[int]]:
        return self.order.batches(self.rank, self.world, self.micro_rows, self.steps)


class CheckedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """`statistics` is kept up to date; `peers` are told before a save, which may take long."""

    lora: Lora | None = None
    _last_loss: Any = 0.0

    def __init__(
        self,
        *args: Any,
        place: Place,
        statistics: StepStatistics,
        peers: Peers | None,
        saver: Saver,
        order: Order,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.place, self.statistics, self.peers, self.order = place, statistics, peers, order
        self.saver, self.output = saver, Path(self.args.output_dir)
        _change_mode_only(self.model)
        link_adapters(self.model)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of the whole run, as one epoch; a run that goes on skips the numbers of the first ones."""
        batches = RankBatches(
            self.order, self.place.rank, self.place.world, self.args.per_device_train_batch_size, self.args.max_steps
        )
        workers = getattr(self.data_collator, "workers", 0)  # for images alone: other rows need none
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            num_workers=workers,
            worker_init_fn=begin_worker if workers else None,
            multiprocessing_context="fork" if workers else None,
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step."""
        self.statistics.begin_step()
        return super().get_batch_samples(self.statistics.stopwatch.batches(epoch_iterator), *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one micro-batch, and write it down. Returns its loss for the reports: the one before, if it is not a
        number (transformers does the same, but stops the device for it)."""
        require_images(inputs)
        self.statistics.rows += inputs.pop("rows")
        self.statistics.tokens += int(inputs["input_ids"].numel())
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.statistics.add_loss(loss)
        loss = torch.where(loss.isfinite(), loss, self._last_loss)
        self._last_loss = loss
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """None: trainer.sizing.flops counts them, and transformers would walk through all modules every micro-step."""
        return 0

    def _clip_grad_norm(self, model: Any) -> Any:
        """As accelerate does it, which walks through all modules first; DeepSpeed clips itself."""
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """DeepSpeed has passed over a step that is not finite by now; AdamW passes over weights without gradient."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.statistics.grad_norm = None if norm is None else float(norm)
        if not self.statistics.is_finite:
            model.zero_grad()
        return norm

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """A checkpoint brings the log_every and save_every of the run that wrote it; this run's count."""
        place = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return place

    def _run_epoch(self, **kwargs: Any) -> None:
        """A run that stopped after its last step, before its results were written, has no more to train."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """bitsandbytes' states in pages stay so when they are read back."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return PagedAdamW if settings.get("is_paged") else kind, settings

    def create_optimizer(self, model: Any = None) -> Any:
        """With other rates for a part of the adapter, where the job asks for them."""
        if getattr(self, "optimizer", None) is None and self.lora is not None and self.lora.lr_ratio != 1:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            settings["weight_decay"] = self.args.weight_decay
            self.optimizer = lora_plus(self.model, kind, self.lora, settings)
        return super().create_optimizer(model)

    @property
    def _is_by_name(self) -> bool:
        return self.is_deepspeed_enabled and is_by_name(self.args.hf_deepspeed_config.config)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Bring back what `_save_optimizer_and_scheduler` has written."""
        named = resume_from_checkpoint if resume_from_checkpoint and has_state(Path(resume_from_checkpoint)) else None
        theirs = None if named else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, theirs)
        link_adapters(self.model)
        if not self.place.on_cpu:
            torch.cuda.empty_cache()  # setting DeepSpeed up takes more for a moment
        if named:
            load_state(self.model_wrapped, Path(named))
            self._load_optimizer_and_scheduler(named)
        elif theirs and self.is_deepspeed_enabled and self.model_wrapped.zero_nvme_offload_optimizer():
            from trainer.checkpoints.ds_checkpoint import finish_loading

            finish_loading(self.model_wrapped, Path(theirs))
        if resume_from_checkpoint:
            _follow_schedule(self.lr_scheduler)
        return prepared

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes checkpoint-N, and removes old ones: never among those that count."""
        return str(part_folder(self.output))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Take the state; threads write and publish it (trainer.checkpoints.saver). Raises SaveError when this rank
        cannot write, or could not write the checkpoint before."""
        busy = self.peers.busy() if self.peers else nullcontext()
        with busy, self.statistics.stopwatch.paused(), self.saver.save(self.state.global_step):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained of the model, for a checkpoint. All ranks take part, rank 0 writes."""
        state = self._weights()
        if self.args.should_save:
            self.saver.write(state, partial(self._save, output_dir))

    def _weights(self) -> dict[str, torch.Tensor]:
        """By the names that save_pretrained takes: of an adapter, or of the whole model."""
        adapter = isinstance(self.model, PeftModel)
        if is_deepspeed_zero3_enabled():
            return dict(self.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter) or {})
        state = self.model.state_dict()
        if adapter:
            return {name: weight for name, weight in state.items() if is_of_adapter(name)}
        return dict(state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """With DeepSpeed every rank has a part of it: in ZeRO 0 to 2 under the names of the parameters, else in
        DeepSpeed's own files."""
        folder = Path(output_dir)
        if self._is_by_name:
            state = take_state(self.model_wrapped)
            self.saver.write(state.pieces, partial(write_state, folder, state))
        elif self.is_deepspeed_enabled:
            from trainer.checkpoints.ds_checkpoint import write_with

            write_with(self.saver, self.model_wrapped)
            super()._save_optimizer_and_scheduler(output_dir)
            return
        elif self.args.should_save:
            self.saver.write(self.optimizer.state_dict(), partial(torch.save, f=folder / OPTIMIZER_NAME))
        if self.args.should_save:
            self.saver.write(self.lr_scheduler.state_dict(), partial(torch.save, f=folder / SCHEDULER_NAME))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the last checkpoint is published then. Raises SaveError, and DivergedError on all ranks at once."""
        try:
            done = super().train(*args, **kwargs)
        except DivergedError:
            self.saver.wait()
            raise
        self.saver.wait()
        return done


def _follow_schedule(wrapped: Any) -> None:
    """Give the optimizer the rate that the schedule has now: a checkpoint brings the one of the schedule that it was
    written under, which is another one when the run has more steps now."""
    scheduler = getattr(wrapped, "scheduler", wrapped)
    rates = [base * share(scheduler.last_epoch)
             for base, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]  # fmt: skip
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # what the log asks for


def _change_mode_only(model: Any) -> None:
    """Spare a model that is in training mode from being put there again: a walk through thousands of modules, every
    micro-step."""
    usual = model.train

    def train(mode: bool = True) -> Any:
        return model if model.training == mode else usual(mode)

    model.train = train
