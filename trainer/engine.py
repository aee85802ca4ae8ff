"""A training run from its config to its output folder, on transformers' Trainer with its DeepSpeed integration.

Output folder: config.yaml, metrics.jsonl, tensorboard/, samples.jsonl, samples.md, loss.png, checkpoint-N/, and at the
end adapter/ (LoRA) or model/ (every parameter).
"""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from trainer.checkpoints.checkpoint import (
    Writers,
    check_writers,
    checkpoint_step,
    newest_valid,
    planned_steps,
    publish,
    remove_parts,
)
from trainer.checkpoints.run_folder import RunFolder
from trainer.checkpoints.saver import Saver
from trainer.config.job import TrainConfig
from trainer.data.cache import REJECTED, DataCache
from trainer.data.collate import Collator
from trainer.data.encode import Encoder
from trainer.data.order import Order
from trainer.data.recognise import with_template
from trainer.data.report import Report, packing_line
from trainer.data.rows import Rows
from trainer.data.templates import find_template
from trainer.errors import PreemptedError, TrainError
from trainer.models.activations import prepare_layers
from trainer.models.experts import require_quantisable
from trainer.models.lora import keep_start
from trainer.node.files import replace_text
from trainer.node.finish import mark_finished, mark_nothing_left
from trainer.node.ranks import Place, alone_environment, find_peers, find_place, printer
from trainer.node.stop import Stop
from trainer.parallel.ds_config import build_ds_config, fill_buckets
from trainer.parallel.host_ops import load_ops, missing_for_deepspeed, needed_ops
from trainer.parallel.partition import is_partitioned
from trainer.parallel.zero_state import is_by_name
from trainer.sizing.flops import flops_of
from trainer.training.arguments import check_schedule, stretched_schedule, training_arguments
from trainer.training.build import (
    build_model,
    new_tokenizer,
    open_tokenizer,
    parameters_line,
    save_result,
    trained_size,
)
from trainer.training.callbacks import (
    BeforeCallback,
    LogCallback,
    MetricsLog,
    RowsCallback,
    SampleCallback,
    StepCallback,
    StepEndCallback,
    ValidationCallback,
    any_rank,
    barrier,
    from_main,
)
from trainer.training.divergence import Divergence
from trainer.training.evaluate import Validation
from trainer.training.loop import CheckedTrainer
from trainer.training.metrics import MetricsFile, StepStatistics, plot_loss
from trainer.training.samples import Sample, Sampler, append_samples, comparison, score
from trainer.training.stopwatch import Stopwatch
from trainer.training.trackers import TENSORBOARD, find_trackers, tensorboard
from trainer.training.watch import begin_watch
from trainer.vision.collate import ImageCollator
from trainer.vision.files import ImageFiles
from trainer.vision.form import find_form


class Run:
    """One run; `run()` does everything in order."""

    def __init__(self, config: TrainConfig, stop: Stop, end: Callable[[int, str], None]) -> None:
        self.config, self.stop = config, stop
        self.place: Place = find_place(config)
        self.tell: Callable[[str], None] = printer(self.place)
        self.folder = RunFolder(config, os.environ, self.tell)
        self.output = self.folder.path
        self.deepspeed: dict[str, Any] | None = None
        self.peers = find_peers(self.place, partial(self._end, end))

    def run(self) -> None:
        """Train and write the results. Raises a TrainError of any kind; a peer that is gone is the reason for whatever
        else failed, and is named."""
        code, why = 1, "unexpected error"
        self.stop.farewell = self._leave
        if self.peers:
            self.peers.start()
        try:
            self._run()
            code = 0
        except TrainError as error:
            code, why = error.exit_code, error.message
            raise
        except Exception as error:
            lost = self.peers.explain() if self.peers else None
            if lost is None:
                raise
            code, why = lost.exit_code, lost.message
            raise lost from error
        finally:
            self._leave(code, why)

    def _leave(self, code: int, why: str) -> None:
        """The peers hear how this rank ends, and the output folder is free."""
        if self.peers:
            self.peers.leave(code, why)
        self.folder.release()

    def _end(self, end: Callable[[int, str], None], code: int, text: str) -> None:
        self.folder.release()
        end(code, text)

    def _run(self) -> None:
        require_quantisable(self.config.model)  # before the data, which may take hours
        self.deepspeed = self._deepspeed_config()
        tokenizer = self._tokenizer()
        set_seed(self.config.settings.seed)
        args = self._arguments()
        if from_main(int(self._claim_output()), self.place.device):
            return
        resumed = self._resume_point()
        start = checkpoint_step(resumed) if resumed else 0
        if tokenizer is None:
            tokenizer = new_tokenizer(self.config, self.output, self.place.is_main, barrier)
        rows = self._rows(tokenizer)
        args = self._scheduled(args, len(rows["train"]), resumed)
        model = self._model(rows["train"])
        args.gradient_checkpointing = prepare_layers(self.config, model, self.place, self.tell)
        if self.deepspeed:
            fill_buckets(args.hf_deepspeed_config.config, trained_size(model))
        sampler = Sampler(
            Encoder(tokenizer, find_template(self.config.model.chat_template, tokenizer)),
            tokenizer,
            self.config.runtime.sampling,
            self.config.runtime.sample_prompts,
            lambda: self.stop.requested,
        )
        if self.place.is_main and resumed is None and self.config.model.lora is not None:
            keep_start(model, self.output)
        split = is_partitioned(model)
        before = [] if split else self._before(sampler, model, resumed)
        trainer, steps = self._trainer(model, args, rows, tokenizer, sampler)
        if self.place.is_main and TENSORBOARD in self.trackers:
            trainer.add_callback(tensorboard(self.output / TENSORBOARD, start))
        if split:  # only DeepSpeed can put the weights together
            answer = BeforeCallback(lambda: before.extend(self._before(sampler, model, resumed)))
            trainer.callback_handler.callbacks.insert(0, answer)  # while a signal still ends the process at once
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if steps.stopped:
            raise PreemptedError(f"told to stop: {steps.saved}", self.folder.going_on())
        if warning := steps.divergence.warning():
            self.tell(warning)
        self._require_folder()
        save_result(trainer, self.config, tokenizer, self.output, self.place.is_main)
        self._after(sampler, model, before, trainer.state.global_step)
        self._require_folder()
        if self.place.is_main:
            mark_finished(self.output, os.environ)
        barrier()  # no rank is done before the results are written: a scheduler does not start it again

    def _tokenizer(self) -> Any | None:
        """That of the job's model, None of a new one. Which template fits it is settled here: config.yaml names it."""
        tokenizer = open_tokenizer(self.config)
        self.config, line = with_template(self.config, tokenizer)
        self.folder.config = self.config
        if line:
            self.tell(line)
        return tokenizer

    def _model(self, train: Rows) -> Any:
        """The model, and how many operations a step of these rows takes."""
        model = build_model(self.config, self.place.device, self.deepspeed)
        # with a cache transformers does not look for the borders of packed samples
        model.config.use_cache = model.config.get_text_config().use_cache = False
        self.tell(parameters_line(model))
        self.flops = flops_of(model, train.samples.lengths[train.members], self.place.device)
        return model

    def _rows(self, tokenizer: Any) -> dict[str, Rows]:
        """The rows for training and validation, from the cache or encoded now, and what is to be said of them."""
        data = self.config.data
        cache = DataCache(Path(data.cache_dir or self.output / "data"), self.tell)
        samples = cache.samples(self.config, tokenizer)
        rows = cache.rows(samples, self.config)
        for line in Report.load(samples.about["report"]).lines():
            self.tell(line)
        if data.pack:
            self.tell(packing_line(len(rows["train"]), int(rows["train"].lengths.sum()), data.max_length))
        rejected = samples.folder / REJECTED
        if self.place.is_main and rejected.exists():
            shutil.copyfile(rejected, self.output / f".{REJECTED}.part").replace(self.output / REJECTED)
        return rows

    def _deepspeed_config(self) -> dict[str, Any] | None:
        deepspeed = build_ds_config(self.config, self.place.world, on_cpu=self.place.on_cpu)
        missing = missing_for_deepspeed() if deepspeed and self.place.on_cpu else []
        if missing:
            self.tell(
                f"DeepSpeed needs {' and '.join(missing)} on a machine without GPU: training goes on without DeepSpeed"
            )
            return None
        if deepspeed:
            load_ops(needed_ops(deepspeed, on_cpu=self.place.on_cpu))
        if deepspeed and self.place.world == 1:
            alone_environment()
        return deepspeed

    def _claim_output(self) -> bool:
        """Have the output folder, on rank 0, while the others wait; whether all results are there already."""
        if not self.place.is_main:
            return False
        self.folder.claim()
        finished = self.folder.finished()
        if finished is None:
            return False
        self.tell(finished)
        mark_nothing_left(self.output, os.environ)
        return True

    def _resume_point(self) -> Path | None:
        """The checkpoint to go on from. Rank 0 reads and compares it, for all."""
        step = -1
        if self.place.is_main:
            remove_parts(self.output)
            checkpoint, problems = newest_valid(self.output)
            for problem in problems:
                self.tell(f"not resumed from {problem}")
            step = checkpoint_step(checkpoint) if checkpoint else -1
        step = from_main(step, self.place.device)
        checkpoint = self.output / f"checkpoint-{step}" if step >= 0 else None
        if checkpoint:
            check_writers(checkpoint, self._writers)
            self.tell(f"resuming from {checkpoint} (step {step})")
        if self.place.is_main:
            MetricsFile(self.output / "metrics.jsonl").keep_up_to(step)
        return checkpoint

    def _arguments(self) -> TrainingArguments:
        self.trackers = find_trackers(self.config.runtime.report_to, self.tell)
        reports = [name for name in self.trackers if name != TENSORBOARD]  # which gets a folder from us
        return training_arguments(self.config, self.place, self.output, self.deepspeed, reports)

    def _scheduled(self, args: TrainingArguments, rows: int, resumed: Path | None) -> TrainingArguments:
        """How many steps, and how many of them warm up. Raises ConfigError for fewer than are trained."""
        optimizer, batch = self.config.optimizer, self._batch
        total = optimizer.max_steps or math.ceil(rows * optimizer.epochs / batch)
        args.max_steps = total
        args.warmup_steps = math.ceil(total * optimizer.warmup_ratio)
        check_schedule(optimizer, args.warmup_steps, total)
        self.tell(
            f"steps: {total} of {batch} rows ({optimizer.batch_size} x {optimizer.accumulation} accumulated x "
            f"{self.place.world} processes), {args.warmup_steps} of them warm-up"
        )
        if resumed:
            self.folder.refuse_fewer(total, checkpoint_step(resumed))
            if words := stretched_schedule(optimizer.schedule, planned_steps(resumed), total):
                self.tell(words)
        return args

    @property
    def _writers(self) -> Writers:
        split = self.deepspeed is not None and not is_by_name(self.deepspeed)
        return Writers(self.place.world, self._batch, split=split)

    @property
    def _batch(self) -> int:
        """Rows of one step, on all ranks."""
        optimizer = self.config.optimizer
        return optimizer.batch_size * optimizer.accumulation * self.place.world

    def _trainer(
        self, model: Any, args: TrainingArguments, rows: dict[str, Rows], tokenizer: Any, sampler: Sampler
    ) -> tuple[CheckedTrainer, StepCallback]:
        settle = torch.cuda.synchronize if not self.place.on_cpu else lambda: None
        statistics, train = StepStatistics(stopwatch=Stopwatch(settle=settle)), rows["train"]
        divergence = Divergence(self.place, train, self.output, self.config.runtime.max_bad_steps)
        saver = Saver(self.output, self._publish, self.place, barrier, self.tell)
        collator = self._collator(tokenizer)
        trainer = CheckedTrainer(
            model=model,
            args=args,
            train_dataset=train,
            order=Order(train.lengths, self.config.settings.seed, self._batch, self.config.data.group_by_length),
            data_collator=collator,
            place=self.place,
            statistics=statistics,
            peers=self.peers,
            saver=saver,
        )
        trainer.lora = self.config.model.lora
        for name in ("PrinterCallback", "ProgressCallback"):
            for callback in [found for found in trainer.callback_handler.callbacks if type(found).__name__ == name]:
                trainer.remove_callback(callback)
        metrics_log = MetricsLog(self.place, self.tell, MetricsFile(self.output / "metrics.jsonl"))
        watch = begin_watch(self.place, self.config.model.dtype, self.tell)
        log = LogCallback(metrics_log, statistics, divergence, watch, self._batch / len(train), self.flops)
        trainer.callback_handler.callbacks.insert(0, log)  # before the reports, which get what it measures
        if self.place.is_main:
            trainer.callback_handler.callbacks.insert(0, StepEndCallback(self._trained_step))
        if self.config.runtime.log_rows:
            trainer.add_callback(RowsCallback(self.place, statistics))
        trainer.add_callback(
            SampleCallback(
                self.config.runtime.eval_every, lambda step: self._ask(sampler, model, step), statistics.stopwatch
            )
        )
        if len(rows["validation"]):
            validation = Validation(rows["validation"], collator, self.place, self.config.optimizer.batch_size)
            trainer.add_callback(
                ValidationCallback(
                    self.config.runtime.eval_every,
                    lambda: validation.loss(model),
                    metrics_log,
                    trainer.log,
                    statistics.stopwatch,
                )
            )
        steps = StepCallback(self.place, self.stop, statistics, divergence, saver, self.peers)
        trainer.add_callback(steps)
        return trainer, steps

    def _publish(self, step: int) -> None:
        self.folder.lock.verify()
        publish(self.output, step, self._writers, self.config.runtime.keep)

    def _trained_step(self) -> None:
        self.folder.lock.require()
        self.folder.take_over()

    def _require_folder(self) -> None:
        if self.place.is_main:
            self.folder.lock.verify()
            self.folder.take_over()

    def _collator(self, tokenizer: Any) -> Collator:
        data = self.config.data
        length = data.max_length if data.pack else None
        form = find_form(self.config.model.path, tokenizer, self.config.model.revision)
        if form is None:
            return Collator(tokenizer.pad_token_id, length)
        return ImageCollator(tokenizer.pad_token_id, length, form, ImageFiles(data.image_dir), self.place.processes)

    def _ask(self, sampler: Sampler, model: Any, step: int, before: list[Sample] | None = None) -> list[Sample]:
        """Answers, told as they come, on rank 0 alone unless the weights are split over the ranks. `before`: those to
        compare the last ones with."""
        split, samples = is_partitioned(model), []
        if split or self.place.is_main:
            samples = sampler.answer_all(model, step, self.tell, before, synced=split and self.place.world > 1)
        if self.place.is_main and samples and not self.stop.requested:  # a stop has cut them short
            append_samples(samples, self.output / "samples.jsonl")
        barrier()
        return samples

    def _before(self, sampler: Sampler, model: Any, resumed: Path | None) -> list[Sample]:
        if resumed is None and self.place.is_main:  # a slower rank would remove what rank 0 has written
            (self.output / "samples.jsonl").unlink(missing_ok=True)
        if resumed is not None and not hasattr(model, "disable_adapter"):
            return []
        with nullcontext() if resumed is None else model.disable_adapter():
            return self._ask(sampler, model, 0)

    def _after(self, sampler: Sampler, model: Any, before: list[Sample], step: int) -> None:
        asked = before or [Sample(0, one.prompt, "(resumed: not asked)", one.expect) for one in sampler.prompts]
        after = self._ask(sampler, model, step, asked)
        if any_rank([self.stop.requested], self.place.device)[0]:
            raise PreemptedError("told to stop after the last step", self.folder.going_on())
        if not self.place.is_main:
            return
        if after:
            lines = ["# Answers before and after training", "", "```", *comparison(asked, after), "```", ""]
            replace_text(self.output / "samples.md", "\n".join(lines))
        plot_loss(MetricsFile(self.output / "metrics.jsonl").read(), self.output / "loss.png")
        for line in score(asked, after):
            self.tell(line)
        self.tell(f"results: {self.output.absolute()}")
