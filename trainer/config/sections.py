"""The base of every section of a job file, and those that say how weights are trained: adapters, optimizer and ZeRO.

Imports no torch, as trainer.config.job.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every section: unknown keys and wrong types are errors, values cannot change afterwards.

    A section left out is filled in by model_construct: its defaults need no check, and building one more validator
    for each section takes longer than everything else that `launch render` does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), and the variants that PEFT carries."""

    r: int = Field(64, ge=1, le=4096, description="Rank of the adapter matrices.")
    alpha: int = Field(16, ge=1, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability on the adapter's input.")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="Names of the linear layers that get an adapter. "
        "Default: every linear layer but the head. (XTuner's automatic choice takes "
        "InternLM2's head along, which servers reject.)",
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(r) instead, which keeps large ranks learning (arXiv:2312.03732)."
    )
    dora: bool = Field(
        False, description="Train the length of a weight's rows apart from their direction (DoRA, arXiv:2402.09353)."
    )
    init: Literal["zero", "pissa"] = Field(
        "zero",
        description="`zero`: an adapter that changes nothing yet. `pissa`: the weight's largest singular vectors, "
        "which the base gives up for training (arXiv:2404.02948); the result is an adapter of rank 2 r for the base "
        "as it is.",
    )
    lr_ratio: float = Field(
        1.0, ge=1, le=1000, description="Learning rate of the B matrices as a multiple of lr (LoRA+, arXiv:2402.12354)."
    )

    @model_validator(mode="after")
    def _one_variant(self) -> Self:
        if self.init == "pissa" and self.dora:
            raise ValueError("got init pissa with dora, allowed: one of the two (DoRA measures the whole weight)")
        return self


class Shape(Section):
    """The size of a model made from nothing."""

    hidden_size: int = Field(256, ge=8, description="Width of the residual stream.")
    intermediate_size: int = Field(704, ge=8, description="Width inside the feed-forward layers.")
    num_layers: int = Field(4, ge=1, description="Number of decoder layers.")
    num_heads: int = Field(8, ge=1, description="Number of query heads.")
    num_kv_heads: int = Field(2, ge=1, description="Number of key/value heads; divides num_heads.")
    vocab_size: int = Field(2000, ge=300, description="Pieces of the tokenizer that is trained on the data.")
    max_positions: int = Field(2048, ge=16, description="Longest sequence in tokens (max_position_embeddings).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"got num_heads {self.num_heads} with num_kv_heads {self.num_kv_heads}, "
                "allowed: a num_kv_heads that divides num_heads"
            )
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"got hidden_size {self.hidden_size} with num_heads {self.num_heads}, "
                "allowed: a hidden_size that is a multiple of 2 x num_heads"
            )
        return self


class DeepSpeed(Section):
    """ZeRO (arXiv:1910.02054)."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="0: none, 1: optimizer states, 2: and gradients, 3: and weights are split over the ranks."
    )
    offload: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where optimizer states live; `nvme` with zero_stage 3 only."
    )
    offload_weights: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where weights live while no layer needs them; with zero_stage 3 only."
    )
    nvme_path: str | None = Field(
        None, min_length=1, description="Folder on a local NVMe disk of every node, for what is offloaded to `nvme`."
    )
    config: str | None = Field(
        None,
        min_length=1,
        description="A DeepSpeed JSON of your own instead of these fields, used as it is. What it leaves out or calls "
        "`auto` comes from this job; what contradicts the job is refused.",
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        # a run's config is written with every default, and read again
        written = self.model_fields_set - {"config"}
        others = sorted(name for name in written if getattr(self, name) != type(self).model_fields[name].default)
        if self.config is not None and others:
            problems.append(f"got config with {', '.join(others)}, allowed: config alone (the file says the rest)")
        if self.offload != "none" and self.zero_stage == 0:
            problems.append(f"got offload {self.offload} with zero_stage 0, allowed: zero_stage 1, 2 or 3")
        if self.offload == "nvme" and self.zero_stage in (1, 2):
            problems.append(f"got offload nvme with zero_stage {self.zero_stage}, allowed: cpu, or zero_stage 3")
        if self.offload_weights != "none" and self.zero_stage != 3:
            problems.append(
                f"got offload_weights {self.offload_weights} with zero_stage {self.zero_stage}, allowed: zero_stage 3"
            )
        on_disk = "nvme" in (self.offload, self.offload_weights)
        if on_disk != (self.nvme_path is not None):
            given = "no nvme_path with" if on_disk else "nvme_path without"
            problems.append(f"got {given} something offloaded to nvme, allowed: both or neither")
        if problems:
            raise ValueError("\n".join(problems))
        return self


Schedule = Literal["cosine", "linear", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts",
                   "cosine_with_min_lr", "warmup_stable_decay"]  # fmt: skip


class Optimizer(Section):
    """AdamW and its schedule."""

    lr: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    schedule: Schedule = Field("cosine", description="Shape of the learning rate after warm-up (transformers' names).")
    schedule_args: dict[str, float | int | str] = Field(
        {}, description="Arguments of that schedule in transformers, such as min_lr_rate: 0.1 of cosine_with_min_lr."
    )
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of the steps in which the rate climbs from 0.")
    epochs: float = Field(3.0, gt=0, le=10000, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps, whatever epochs says.")
    batch_size: int = Field(1, ge=1, le=4096, description="Rows per process and micro-step.")
    accumulation: int = Field(16, ge=1, le=4096, description="Micro-steps per optimizer step.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW's decoupled weight decay.")
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field([0.9, 0.999], description="AdamW's betas.")
    states: Literal["float32", "8bit", "paged"] = Field(
        "float32",
        description="How AdamW's two moments are held, by bitsandbytes unless in float32. `8bit`: in a quarter of the "
        "memory (arXiv:2110.02861). `paged`: float32, in the node's memory while the GPU is full (arXiv:2305.14314). "
        "Both without DeepSpeed.",
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 does not clip.")
    deepspeed: DeepSpeed | None = Field(
        default_factory=DeepSpeed.model_construct,
        description="ZeRO settings; null trains without DeepSpeed (one process, for debugging).",
    )

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"got betas {self.betas}, allowed: two numbers from 0 up to, not including, 1")
        return self

    @model_validator(mode="after")
    def _states_are_ours(self) -> Self:
        if self.states != "float32" and self.deepspeed is not None:
            raise ValueError(
                f"got states {self.states} with DeepSpeed, allowed: float32, which DeepSpeed's states are, or "
                "deepspeed: null"
            )
        return self
