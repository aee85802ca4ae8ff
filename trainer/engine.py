"""A training run from its config to its output folder, on transformers' Trainer with its DeepSpeed integration.

Output folder: config.yaml, metrics.jsonl, samples.jsonl, samples.md, loss.png, checkpoint-N/, and at the end
adapter/ (LoRA) or model/ (every parameter).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments, set_seed

from trainer.callbacks import Ledger, LogCallback, RowsCallback, SampleCallback, SealCallback, StopCallback, barrier
from trainer.checkpoint import checkpoint_step, newest_valid
from trainer.config import TrainConfig
from trainer.data.collate import Collator
from trainer.data.encode import Encoder
from trainer.data.pipeline import encode_dataset, training_rows
from trainer.data.templates import TEMPLATES
from trainer.dist import Place, alone_environment, find_place, missing_for_deepspeed
from trainer.ds_config import build_ds_config
from trainer.errors import ConfigError, PreemptedError
from trainer.metrics import MetricsFile, plot_loss, replace_text
from trainer.models.build import build_model, build_tokenizer, save_result
from trainer.samples import Sample, Sampler, append_samples, comparison

PEER_TIMEOUT_S = 600  # a lost peer must not hold the others for torch's default of 30 minutes


class PackedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trainer that keeps a ledger of what it computes."""

    def __init__(self, *args: Any, ledger: Ledger, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledger = ledger

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step."""
        self.ledger.rows = []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Write down, then train."""
        self.ledger.rows += inputs.pop("rows")
        self.ledger.tokens += int(inputs["input_ids"].numel())
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss


class Run:
    """One run; `run()` does everything in order."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.place: Place = find_place(config)
        self.output = Path(config.settings.output_dir or "outputs")
        self.tell: Callable[[str], None] = _teller(self.place)
        self.stop = StopCallback(self.place)
        self.stop.install()

    def run(self) -> None:
        """Train and write the results. Raises ConfigError, DivergedError or PreemptedError."""
        deepspeed = self._deepspeed_config()
        self._prepare_output()
        resumed = self._resume_point()
        set_seed(self.config.settings.seed)
        args = self._arguments(deepspeed)
        tokenizer = build_tokenizer(self.config, self.output, self.place.is_main, barrier)
        samples, report = encode_dataset(self.config, tokenizer)
        rows = training_rows(samples, self.config, report)
        for line in report.lines(self.config.data.max_length, self.config.data.pack):
            self.tell(line)
        args = self._scheduled(args, len(rows))
        model = build_model(self.config, self.place.device)
        model.config.use_cache = False  # with a cache transformers does not look for the borders of packed samples
        self.tell(_parameters(model))
        sampler = Sampler(
            Encoder(tokenizer, TEMPLATES[self.config.model.chat_template]),
            tokenizer,
            self.config.runtime.sampling,
            self.config.runtime.sample_prompts,
        )
        before = self._before(sampler, model, resumed)
        trainer = self._trainer(model, args, rows, tokenizer, sampler)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if self.stop.stopped:
            raise PreemptedError(
                f"told to stop: saved at step {trainer.state.global_step}", "start it again; it goes on from there"
            )
        save_result(trainer, self.config, tokenizer, self.output, self.place.is_main)
        self._after(sampler, model, before, trainer.state.global_step)

    def _deepspeed_config(self) -> dict[str, Any] | None:
        deepspeed = build_ds_config(self.config, self.place.world, on_cpu=self.place.on_cpu)
        missing = missing_for_deepspeed() if deepspeed and self.place.on_cpu else []
        if missing:
            self.tell(
                f"DeepSpeed needs {' and '.join(missing)} on a machine without GPU: training goes on without DeepSpeed"
            )
            return None
        if deepspeed and self.place.world == 1:
            alone_environment()
        return deepspeed

    def _prepare_output(self) -> None:
        """Make the folder; refuse to mix two configurations in one."""
        mine = self.config.model_dump(mode="json")
        path = self.output / "config.yaml"
        if path.exists() and any(self.output.glob("checkpoint-*")):
            theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
            changed = [name for name in ("model", "data", "optimizer") if theirs.get(name) != mine[name]]
            if self.config.runtime.resume == "never" or changed:
                why = (
                    f"another {' and '.join(changed)} section"
                    if changed
                    else "checkpoints, and runtime.resume is never"
                )
                raise ConfigError(
                    f"settings.output_dir: got {self.output}, which holds a run with {why}",
                    "choose another output_dir, or remove that folder",
                )
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.place.is_main:
                replace_text(path, yaml.safe_dump(mine, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise ConfigError(
                f"settings.output_dir: {self.output} cannot be written: {error.strerror}",
                "choose a folder that this user may write, on a mounted volume",
            ) from error

    def _resume_point(self) -> Path | None:
        checkpoint, problems = newest_valid(self.output)
        for problem in problems:
            self.tell(f"not resumed from {problem}")
        if checkpoint:
            self.tell(f"resuming from {checkpoint} (step {checkpoint_step(checkpoint)})")
            if self.place.is_main:
                MetricsFile(self.output / "metrics.jsonl").keep_up_to(checkpoint_step(checkpoint))
        return checkpoint

    def _arguments(self, deepspeed: dict[str, Any] | None) -> TrainingArguments:
        optimizer, runtime, model = self.config.optimizer, self.config.runtime, self.config.model
        return TrainingArguments(
            output_dir=str(self.output),
            seed=self.config.settings.seed,
            data_seed=self.config.settings.seed,
            per_device_train_batch_size=optimizer.batch_size,
            gradient_accumulation_steps=optimizer.accumulation,
            learning_rate=optimizer.lr,
            lr_scheduler_type=optimizer.schedule,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            max_grad_norm=optimizer.max_grad_norm,
            num_train_epochs=optimizer.epochs,
            max_steps=optimizer.max_steps or -1,
            optim="adamw_torch",
            bf16=model.dtype == "bf16",
            use_cpu=self.place.on_cpu,
            deepspeed=deepspeed,
            ddp_timeout=PEER_TIMEOUT_S,
            gradient_checkpointing=model.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=runtime.log_every,
            logging_first_step=True,
            save_steps=runtime.save_every,
            save_total_limit=runtime.keep,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=not self.place.on_cpu,
            label_names=["labels"],
        )

    def _scheduled(self, args: TrainingArguments, rows: int) -> TrainingArguments:
        """Warm-up in steps: its ratio of all of them."""
        optimizer = self.config.optimizer
        batch = optimizer.batch_size * optimizer.accumulation * self.place.world
        total = optimizer.max_steps or math.ceil(max(1, math.ceil(rows / batch)) * optimizer.epochs)
        args.warmup_steps = math.ceil(total * optimizer.warmup_ratio)
        self.tell(
            f"steps: {total} of {batch} rows ({optimizer.batch_size} x {optimizer.accumulation} accumulated x "
            f"{self.place.world} processes), {args.warmup_steps} of them warm-up"
        )
        return args

    def _trainer(
        self, model: Any, args: TrainingArguments, rows: list[Any], tokenizer: Any, sampler: Sampler
    ) -> Trainer:
        ledger = Ledger()
        collator = Collator(tokenizer.pad_token_id, self.config.data.max_length if self.config.data.pack else None)
        trainer = PackedTrainer(model=model, args=args, train_dataset=rows, data_collator=collator, ledger=ledger)
        for name in ("PrinterCallback", "ProgressCallback"):
            for callback in [found for found in trainer.callback_handler.callbacks if type(found).__name__ == name]:
                trainer.remove_callback(callback)
        metrics = MetricsFile(self.output / "metrics.jsonl")
        trainer.add_callback(LogCallback(self.place, metrics, ledger, self.tell))
        if self.config.runtime.log_rows:
            trainer.add_callback(RowsCallback(self.place, ledger))
        trainer.add_callback(
            SampleCallback(self.config.runtime.eval_every, lambda step: self._ask(sampler, model, step))
        )
        trainer.add_callback(SealCallback(self.place))
        trainer.add_callback(self.stop)
        return trainer

    def _ask(self, sampler: Sampler, model: Any, step: int) -> list[Sample]:
        """Answers, on rank 0 alone unless the weights are split over the ranks."""
        deepspeed = self.config.optimizer.deepspeed
        split = deepspeed is not None and deepspeed.zero_stage == 3 and step > 0
        samples = (
            sampler.answer_all(model, step, synced=split and self.place.world > 1)
            if split or self.place.is_main
            else []
        )
        if self.place.is_main:
            append_samples(samples, self.output / "samples.jsonl")
        barrier()
        return samples

    def _before(self, sampler: Sampler, model: Any, resumed: Path | None) -> list[Sample]:
        if resumed is None:
            (self.output / "samples.jsonl").unlink(missing_ok=True)
        if resumed is not None and not hasattr(model, "disable_adapter"):
            return []
        return self._ask(sampler, model, 0)  # a new adapter changes nothing yet

    def _after(self, sampler: Sampler, model: Any, before: list[Sample], step: int) -> None:
        after = self._ask(sampler, model, step)
        if not self.place.is_main:
            return
        lines = comparison(
            before or [Sample(0, sample.prompt, "(resumed: not asked)", sample.expect) for sample in after], after
        )
        replace_text(
            self.output / "samples.md", "\n".join(["# Answers before and after training", "", "```", *lines, "```", ""])
        )
        plot_loss(MetricsFile(self.output / "metrics.jsonl").read(), self.output / "loss.png")
        for line in lines:
            self.tell(line)
        self.tell(f"results: {self.output.absolute()}")


def _teller(place: Place) -> Callable[[str], None]:
    """Rank 0 talks; the first rank of every other node says the step lines too, so that its log shows life."""

    def tell(text: str) -> None:
        if place.is_main or (place.local_rank == 0 and text.startswith("step ")):
            print(text, flush=True)  # noqa: T201

    return tell


def _parameters(model: Any) -> str:
    """How many parameters there are and how many are trained (4-bit layers count their real ones)."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += math.prod(state.shape) if state is not None else parameter.numel()
    return f"model: {total:,} parameters, {trained:,} of them trained"
