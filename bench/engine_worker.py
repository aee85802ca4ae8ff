"""One measurement of our training step for bench/engine.py: a JSON object as argument, another one as last line.

Kinds: speed, dropout (0.1) and fp8 (`compute: fp8`) on rows that are one sample, as the peers train them, and on packed
real rows; loss, fp8_loss and reference: the mean of the last 50 losses on packed real rows, through our layers, in FP8,
and through transformers' and PEFT's.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.config.job import TrainConfig
from trainer.data.cache import DataCache
from trainer.data.collate import Collator
from trainer.data.rows import Row
from trainer.models.activations import prepare_layers
from trainer.models.tokenizer import load_tokenizer
from trainer.node.ranks import Place
from trainer.sizing.estimate import Job, Placement, estimate, shape_of_config
from trainer.training.build import build_model

DEVICE = torch.device("cuda", 0)
WARM_UP, STEPS, LAST = 3, 6, 50


def main() -> None:
    """Measure what the argument asks for."""
    job = json.loads(sys.argv[1])
    torch.manual_seed(0)
    config = config_of(job)
    step = Step(config, fused=job["kind"] != "reference")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "precision": step.precision}
    if job["kind"] in {"speed", "dropout", "fp8"}:
        found["tok_s"] = step.speed(whole_rows(config))
        found["gb"] = round(used_gb(), 2)
    if job["kind"] in {"speed", "fp8"}:
        shape = shape_of_config(json.loads((Path(job["model"]) / "config.json").read_text()))
        found["estimate_gb"] = round(estimate(Job(config, shape, Placement(1, 1))).gpu.total / 1e9, 2)
        found["packed_tok_s"] = step.speed(packed_rows(job, config))
    if job["kind"] in {"loss", "fp8_loss", "reference"}:
        rows = packed_rows(job, config)
        losses = [float(step.train(next(rows))) for _ in range(job["loss_steps"])]
        found |= {"loss": statistics.mean(losses[-LAST:]), "first": losses[0]}
    print(json.dumps(found), flush=True)


def config_of(job: dict[str, Any]) -> TrainConfig:
    """The job of a measurement: QLoRA of rank 64 on every linear layer, without DeepSpeed."""
    dropout = 0.1 if job["kind"] == "dropout" else 0.0
    compute = "fp8" if job["kind"] in {"fp8", "fp8_loss"} else None
    return TrainConfig.model_validate(
        {
            "model": {"path": job["model"], "lora": {"dropout": dropout}, "gradient_checkpointing": job["policy"],
                      "compute": compute, "chat_template": "internlm2"},
            "data": {"sources": [{"path": path} for path in job["rows"]], "max_length": job["seq"], "bad_rows": "skip"},
            "optimizer": {"batch_size": job["batch"], "lr": 2e-4, "deepspeed": None},
        }
    )


class Step:
    """A training step as the engine takes it: forward, backward, clipping, AdamW."""

    def __init__(self, config: TrainConfig, *, fused: bool) -> None:
        self.config = config
        self.model = build_model(config, DEVICE)
        self.model.config.use_cache = False
        if fused:
            prepare_layers(config, self.model, Place(0, 0, 1, DEVICE), print)
        else:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.optimizer.lr, weight_decay=0.0, fused=True)

    @property
    def precision(self) -> str:
        """Of adapters and optimizer."""
        return f"{str(self.trained[0].dtype).removeprefix('torch.')} adapters and AdamW states"

    def train(self, rows: list[Row]) -> torch.Tensor:
        """One step; returns its loss."""
        batch = Collator(2, self.config.data.max_length)(rows)
        batch.pop("rows")
        inputs = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def speed(self, rows: Iterator[list[Row]]) -> int:
        """Tokens a second: the median of some steps after some others."""
        seconds = []
        for _ in range(WARM_UP + STEPS):
            batch = next(rows)
            torch.cuda.synchronize()
            began = time.perf_counter()
            self.train(batch)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        tokens = self.config.optimizer.batch_size * self.config.data.max_length
        return round(tokens / statistics.median(seconds[WARM_UP:]))


def whole_rows(config: TrainConfig) -> Iterator[list[Row]]:
    """Batches of random tokens, every row one sample, every token trained."""
    rng = np.random.default_rng(0)
    while True:
        samples = rng.integers(5, 92544, (config.optimizer.batch_size, config.data.max_length)).astype(np.int32)
        yield [Row(number, [sample], []) for number, sample in enumerate(samples)]


def packed_rows(job: dict[str, Any], config: TrainConfig) -> Iterator[list[Row]]:
    """Batches of packed real rows, shuffled anew whenever they are used up."""
    with tempfile.TemporaryDirectory() as folder:
        cache = DataCache(Path(folder), lambda _: None)
        rows = cache.rows(cache.samples(config, load_tokenizer(job["tokenizer"])), config)["train"]
        rng = random.Random(0)
        order: list[int] = []
        while True:
            while len(order) < config.optimizer.batch_size:
                order += rng.sample(range(len(rows)), len(rows))
            yield [rows[order.pop()] for _ in range(config.optimizer.batch_size)]


def used_gb() -> float:
    """What the device reports used, in 10^9 bytes."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


if __name__ == "__main__":
    main()
