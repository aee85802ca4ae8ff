"""The memory of a training job from its configuration and its model's shape alone: no torch, no GPU, no file.

Bytes everywhere; GB in comments are 10^9 bytes, as devices report them used. What a measurement may correct are the
constants below and the functions under "Activations"; the rest is counting.

Shapes: B rows, T tokens of a row, H hidden, I intermediate, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

from trainer.config.job import Lora, TrainConfig
from trainer.families.shape import ModelShape
from trainer.sizing.experts import expert_count, quantised_experts
from trainer.sizing.shapes import HUB_SHAPES, new_shape, shape_of_config
from trainer.sizing.state_bytes import ELEMENT, MOMENTS, StateBytes, state_bytes

__all__ = ["HUB_SHAPES", "TOLERANCE", "Estimate", "GpuMemory", "Job", "ModelShape", "Placement", "estimate",
           "expert_count", "new_shape", "quantised_experts", "shape_of_config"]  # fmt: skip

TOLERANCE = 0.05  # the estimate of a GPU is good to this share

# A GPU (measured: H200, torch 2.11). CUDA's context and libraries, before anything is allocated; cuBLAS's workspace.
CUDA_CONTEXT = 650_000_000
CUBLAS_WORKSPACE = 100_000_000
# Channels and buffers of NCCL, for several ranks, and for one, which DeepSpeed makes it serve; what DeepSpeed takes
# besides for its own kernels and between its buffers, and what a save in ZeRO-3 adds, which puts weights together.
NCCL_BUFFERS, NCCL_ALONE, DEEPSPEED_CONTEXT, ZERO3_SAVE = 800_000_000, 200_000_000, 700_000_000, 500_000_000
# Share of the memory for what lives for a moment that torch's allocator holds without using it.
FRAGMENTATION = 0.25
# Tensors of one layer's input's size on their way to and from the node's memory.
ON_THEIR_WAY = 4
# 4-bit weights: values that share a scale, scales that share a second one (QLoRA, arXiv:2305.14314, section 3), and the
# code tables and offset beside each weight, in blocks of torch's allocator.
NF4_BLOCK, NF4_GROUP, NF4_TABLES = 64, 256, 2048
# Tokens that go through the feed-forward half of a fused layer at a time, and bytes of logits that exist at a time.
FEED_FORWARD_PART, LOGITS_PART = 8192, 2**28
# Bytes of a logit where all exist at once: bf16, and float32 for the softmax and its gradient.
WHOLE_LOGIT = 10
# DeepSpeed's buffers, in elements, as parallel/ds_config.py asks for them: a bucket is this part of what is trained
# (it is sent while the next one fills; more of them would be smaller than a network likes), within these bounds, the
# upper one DeepSpeed's own; whole weights that ZeRO-3 keeps beside a rank's own part (DeepSpeed's 10^9 would be half of
# a 4-bit 7B model, which has 4 weights in an element).
BUCKETS, SMALLEST_BUCKET, LARGEST_BUCKET = 4, 2**20, 500_000_000
LIVE_WEIGHTS = 200_000_000

# The node, as what is needed at least. A training process with torch and, on GPUs, CUDA's libraries.
HOST_PROCESS_GPU, HOST_PROCESS_CPU = 1_500_000_000, 500_000_000
# NCCL's segment for one pair of ranks of a node (the size that its error messages name).
NCCL_SHM_PAIR = 9_637_888

Policy = Literal["none", "selective", "full", "offload"]
POLICIES: tuple[Policy, ...] = ("none", "selective", "full", "offload")  # ever less memory, ever slower


@dataclass(frozen=True)
class Placement:
    """Where a job runs: nodes, processes on each (one per GPU), and whether they have GPUs."""

    nodes: int
    per_node: int
    on_gpu: bool = True

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Job:
    """What an estimate depends on. `card`: bytes of a GPU, where they are known."""

    config: TrainConfig
    shape: ModelShape
    placement: Placement
    card: int | None = None

    @property
    def element(self) -> int:
        """Bytes of a number in `model.dtype`."""
        return ELEMENT[self.config.model.dtype]

    @property
    def tokens(self) -> int:
        """B * T of a micro-step."""
        return self.config.optimizer.batch_size * self.config.data.max_length

    @property
    def hidden_states(self) -> int:
        """Bytes of one layer's input."""
        return self.tokens * self.shape.hidden * self.element

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        lora = self.config.model.lora
        return self.shape.parameters if lora is None else adapter_parameters(lora, self.shape)

    @property
    def zero_stage(self) -> int:
        """0 without DeepSpeed, too."""
        deepspeed = self.config.optimizer.deepspeed
        return deepspeed.zero_stage if deepspeed else 0

    @property
    def offloads(self) -> bool:
        """Whether optimizer states live in the node's memory; those in pages do where the GPU is full."""
        deepspeed = self.config.optimizer.deepspeed
        if deepspeed is None:
            return self.config.optimizer.states == "paged"
        return deepspeed.offload != "none" and deepspeed.zero_stage >= 1

    def share(self, size: int, *, from_stage: int) -> int:
        """What one rank holds of `size` bytes that ZeRO splits from this stage on."""
        return math.ceil(size / self.placement.world) if self.zero_stage >= from_stage else size


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one process on its device. Of the last three parts only one is in use at a time: the layer's and the
    loss's beside the activations, the step's without them."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    buffers: int
    deepspeed: int
    context: int
    activations: int
    layer: int
    loss: int
    step: int

    @property
    def fixed(self) -> int:
        """What is held all the time."""
        states = self.weights + self.adapters + self.gradients + self.optimizer
        return states + self.buffers + self.deepspeed + self.context

    @property
    def total(self) -> int:
        """The peak."""
        return self.fixed + max(self.activations + max(self.layer, self.loss), self.step)


@dataclass(frozen=True)
class Estimate:
    """`policy`: what of the activations is kept; `host`: bytes that a node needs at least; `shm`: of these, those in
    /dev/shm."""

    parameters: int
    trained: int
    policy: Policy
    gpu: GpuMemory
    host: int
    shm: int


def estimate(job: Job) -> Estimate:
    """The memory of every GPU and every node. On a CPU `gpu` is a process's share of the node's memory."""
    policy, shm = activation_policy(job), shared_memory(job)
    memory = gpu_memory(job, policy)
    return Estimate(job.shape.parameters, job.trained, policy, memory, host_memory(job, memory, policy) + shm, shm)


def gpu_memory(job: Job, policy: Policy) -> GpuMemory:
    """The memory of one process on its device, under this activation policy."""
    lora, state = job.config.model.lora, state_bytes(job.config)
    trained = job.share(job.trained * state.weight, from_stage=3)
    slack, moving = 1 + FRAGMENTATION, ON_THEIR_WAY if policy == "offload" else 0
    return GpuMemory(
        weights=trained if lora is None else frozen_weights(job, policy),
        adapters=0 if lora is None else trained,
        gradients=gradients(job, state),
        optimizer=0 if job.offloads else optimizer_states(job, state),
        buffers=work_buffers(job, policy),
        deepspeed=communication(job, state),
        context=CUDA_CONTEXT if job.placement.on_gpu else 0,
        activations=job.shape.layers * kept_in_layer(job, policy) + moving * job.hidden_states,
        layer=round(slack * work_in_layer(job, policy)),
        loss=round(slack * loss_work(job)),
        step=step_work(job, state),
    )


# Weights and states


def adapter_parameters(lora: Lora, shape: ModelShape) -> int:
    """r * (inputs + outputs) of every linear layer that gets an adapter."""
    targets = [sizes for name, sizes in shape.linears.items() if lora.targets is None or name in lora.targets]
    return shape.layers * lora.r * sum(inputs + outputs for inputs, outputs in targets)


def frozen_weights(job: Job, policy: Policy) -> int:
    """The base model of an adapter; under `offload` without its embedding. ZeRO-3 splits parameters, the embedding too,
    but not the scales that belong to 4-bit ones."""
    shape = job.shape
    away = shape.vocab * shape.hidden if policy == "offload" and not shape.tied and job.zero_stage < 3 else 0
    if job.config.model.quantization == "none":
        return job.share((shape.parameters - away) * job.element, from_stage=3)
    rest = (shape.parameters - away - shape.linear_parameters) * job.element
    if job.config.model.quantization == "int8":
        return shape.linear_parameters + rest
    return job.share(shape.linear_parameters // 2 + rest, from_stage=3) + nf4_scales(shape)


def nf4_scales(shape: ModelShape) -> int:
    """One byte a block, four bytes a group of blocks, and the tables of each weight."""
    in_layer = 0
    for inputs, outputs in shape.linears.values():
        blocks = math.ceil(inputs * outputs / NF4_BLOCK)
        in_layer += blocks + 4 * math.ceil(blocks / NF4_GROUP) + NF4_TABLES
    return shape.layers * in_layer


def optimizer_states(job: Job, state: StateBytes) -> int:
    """float32 originals and moments. bitsandbytes keeps those of an embedding in float32."""
    table = job.shape.vocab * job.shape.hidden if job.config.model.lora is None else 0
    return job.share(round(job.trained * (state.master + state.moments) + table * (MOMENTS - state.moments)),
                     from_stage=1)  # fmt: skip


def gradients(job: Job, state: StateBytes) -> int:
    """Offloaded ZeRO-2 and 3 move each gradient to the node's memory as soon as it is reduced."""
    if job.offloads and job.zero_stage >= 2:
        return 0
    return job.share(job.trained * state.gradient, from_stage=2)


def step_work(job: Job, state: StateBytes) -> int:
    """While the optimizer steps: the float32 copy of the gradients that belong to a rank; of moments in pages those of
    one tensor."""
    if job.config.optimizer.states == "paged":
        largest = job.shape.largest_weight if job.config.model.lora is None else job.trained // job.shape.layers
        return MOMENTS * largest
    if state.master == 0 or job.offloads:
        return 0
    return job.share(job.trained * 4, from_stage=1)


# Buffers


def work_buffers(job: Job, policy: Policy) -> int:
    """The dense weights of one layer, for all layers the same memory, or under `none` kept for the backward pass; bf16
    copies of float32 weights that autocast keeps."""
    model = job.config.model
    buffers = CUBLAS_WORKSPACE if job.placement.on_gpu else 0
    if model.lora is not None and model.quantization == "nf4":
        dense, float8 = job.shape.linear_parameters * job.element, model.compute == "fp8"
        buffers += dense if policy == "none" and not float8 else dense // job.shape.layers
    if model.lora is None and model.dtype == "bf16" and job.config.optimizer.deepspeed is None:
        buffers += job.shape.linear_parameters * 2
    return buffers


def float8_work(job: Job) -> int:
    """What a layer's products in FP8 take: its weights, rounded for either direction, and the widest activations."""
    if job.config.model.compute != "fp8":
        return 0
    widest = min(job.tokens, FEED_FORWARD_PART) * 2 * job.shape.intermediate
    return 2 * job.shape.linear_parameters // job.shape.layers + widest


def communication(job: Job, state: StateBytes) -> int:
    """Reduction buckets, the weights that ZeRO-3 has gathered, and NCCL's own buffers."""
    several = job.placement.world > 1
    size = NCCL_BUFFERS if several and job.placement.on_gpu else 0
    size += ZERO3_SAVE if size and job.zero_stage == 3 else 0
    if job.config.optimizer.deepspeed is not None and job.placement.on_gpu:
        size += DEEPSPEED_CONTEXT + (0 if several else NCCL_ALONE)
    if job.config.optimizer.deepspeed is None or job.zero_stage == 0:
        return size + (job.trained * state.gradient if several else 0)
    overlaps = job.placement.on_gpu and (several or job.zero_stage == 3)  # one bucket is sent while the next one fills
    size += bucket_elements(job.trained) * state.gradient * (2 if overlaps else 1)
    return size + (gathered_weights(job) if job.zero_stage == 3 and several else 0)


def bucket_elements(trained: int) -> int:
    """Elements of a bucket, which DeepSpeed reserves whole."""
    return min(LARGEST_BUCKET, max(SMALLEST_BUCKET, trained // BUCKETS // 2 * 2))  # ZeRO asks for an even number


def gathered_weights(job: Job) -> int:
    """ZeRO-3: whole weights beside a rank's own part (4-bit ones lie several in an element of `model.dtype`), at the
    head, which is put together whatever else is there."""
    shape = job.shape
    elements = shape.parameters + (0 if job.config.model.lora is None else job.trained)
    if job.config.model.quantization == "nf4":
        elements -= shape.linear_parameters - shape.linear_parameters // (2 * job.element)
    return min(elements, LIVE_WEIGHTS + shape.vocab * shape.hidden) * job.element


# Activations: what the engine keeps and needs under each policy


def activation_policy(job: Job) -> Policy:
    """What the job asks for; `auto` is the first policy that fits the card, `full` where that is not known and for full
    training, whose layers are transformers' own."""
    asked = job.config.model.gradient_checkpointing
    if isinstance(asked, bool):
        return "full" if asked else "none"
    if asked != "auto":
        return asked
    if not job.placement.on_gpu:
        return "none"
    if job.card is None or job.config.model.lora is None:
        return "full"
    most = job.card * (1 - TOLERANCE)
    return next((policy for policy in POLICIES if gpu_memory(job, policy).total <= most), POLICIES[-1])


def layer_tensors(shape: ModelShape, policy: Policy) -> int:
    """Elements per token that one layer keeps on the device from its forward to its backward pass."""
    attention = shape.hidden + shape.qkv_width + shape.query_width + shape.hidden  # input, q k v, output, residual
    return {
        "none": attention + 2 * shape.intermediate,  # and gate and up
        "selective": attention,
        "full": shape.hidden,
        "offload": 0,
    }[policy]


def kept_in_layer(job: Job, policy: Policy) -> int:
    """Bytes that one layer keeps on the device until its backward pass."""
    return job.tokens * layer_tensors(job.shape, policy) * job.element


def work_in_layer(job: Job, policy: Policy) -> int:
    """What one layer's backward pass needs beside what is kept, at the worse of its two moments: in the feed-forward
    half, which goes in parts, and in the attention."""
    shape, tokens, lora = job.shape, job.tokens, job.config.model.lora
    again = layer_tensors(shape, "selective") - min(layer_tensors(shape, policy), layer_tensors(shape, "selective"))
    in_part = 2 * shape.hidden + shape.intermediate  # norm and its gradient, the gradient inside
    in_part += 0 if policy == "none" else 2 * shape.intermediate  # gate and up, which become their gradients
    in_part += shape.intermediate if lora and lora.dropout else 0
    feed_forward = tokens * (again + 2 * shape.hidden) + min(tokens, FEED_FORWARD_PART) * in_part
    # gradients of the residual and the middle, of q k v and of the output; the kernel sums q's in float32
    attention = again + 2 * shape.hidden + shape.qkv_width + shape.query_width + 2 * shape.query_width
    attention += shape.qk_norm * (shape.query_width + shape.kv_width)  # beside what went into the norm
    return max(feed_forward, tokens * attention) * job.element + float8_work(job)


def loss_work(job: Job) -> int:
    """The last hidden states, those that are trained, and their gradient; a part of the logits, or without adapters,
    where transformers computes the loss, all of them."""
    hidden = 3 * job.tokens * job.shape.hidden * job.element
    if job.config.model.lora is None:
        return hidden + job.tokens * job.shape.vocab * WHOLE_LOGIT
    return hidden + min(LOGITS_PART, job.tokens * job.shape.vocab * job.element)


def offloaded_activations(job: Job, policy: Policy) -> int:
    """Bytes of one process's activations in the node's memory: inputs and attention outputs of all layers."""
    if policy != "offload":
        return 0
    return job.shape.layers * job.tokens * (job.shape.hidden + job.shape.query_width) * job.element


# The node


def host_memory(job: Job, memory: GpuMemory, policy: Policy) -> int:
    """What the processes of a node need at least, /dev/shm aside: the larger of loading, and of training and saving."""
    place = job.placement
    each = HOST_PROCESS_GPU if place.on_gpu else HOST_PROCESS_CPU + memory.total
    loading = loading_memory(job) if place.on_gpu else 0
    training = offloaded_states(job) + offloaded_activations(job, policy)
    return place.per_node * each + max(place.per_node * loading, place.per_node * training + saving_memory(job))


def loading_memory(job: Job) -> int:
    """Of each process. A new model is made in float32; of a checkpoint one weight at a time is held."""
    if job.config.model.init is not None:
        return job.shape.parameters * 4
    return job.shape.largest_weight * job.element


def saving_memory(job: Job) -> int:
    """Of the first process: every parameter in bf16, unless an adapter is saved."""
    return job.shape.parameters * 2 if job.config.model.lora is None else 0


def offloaded_states(job: Job) -> int:
    """Optimizer states, and from ZeRO-2 on float32 gradients, of one rank."""
    if not job.offloads:
        return 0
    state = state_bytes(job.config)
    held = state.master + MOMENTS + (4 if job.zero_stage >= 2 else 0)
    return job.share(job.trained * held, from_stage=1)


def shared_memory(job: Job) -> int:
    """NCCL's segments between the ranks of a node."""
    ranks = job.placement.per_node
    return ranks * (ranks - 1) * NCCL_SHM_PAIR if job.placement.on_gpu else 0
