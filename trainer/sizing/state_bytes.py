"""The bytes of a trained parameter and its optimizer states. Imports no torch, as trainer.sizing.estimate."""

from dataclasses import dataclass

from trainer.config.job import TrainConfig

ELEMENT = {"bf16": 2, "fp32": 4}
BLOCK = 256  # 8-bit moments that share a float32 scale (arXiv:2110.02861; bitsandbytes' optimizers)
MOMENTS, MOMENTS_8BIT = 2 * 4, 2 * (1 + 4 / BLOCK)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one trained parameter: the weight, its gradient, its float32 original, and Adam's two moments."""

    weight: int
    gradient: int
    master: int
    moments: float


def state_bytes(config: TrainConfig) -> StateBytes:
    """DeepSpeed trains in `model.dtype` with float32 originals; without it trained weights are float32 themselves."""
    if config.optimizer.deepspeed is None:
        return StateBytes(4, 4, 0, MOMENTS_8BIT if config.optimizer.states == "8bit" else MOMENTS)
    element = ELEMENT[config.model.dtype]
    return StateBytes(element, element, 4, MOMENTS)
