"""What DeepSpeed's optimizer remembers in ZeRO 0, 1 and 2, under the names of the parameters, so that any number of
ranks can go on from it. Safetensors, no pickle. [I/O]

ZeRO 1 and 2 lay all parameters of a group end to end and give each rank a part of that line; a parameter may lie in
two parts (DeepSpeed's tensor_fragment.py). Every rank writes the pieces it has, without asking the others, as tensors
`KIND@START@NAME`: elements START... of the flat parameter NAME; KIND is `weight` (the float32 copy) or one of Adam's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.parallel.ds_config import zero_stage

FOLDER = "zero"
WEIGHT = "weight"


@dataclass(frozen=True)
class Span:
    """Where a piece of a parameter lies in what the optimizer holds: `count` elements from `held` there, from `start`
    in the parameter."""

    name: str
    start: int
    held: int
    count: int


@dataclass(frozen=True)
class Holder:
    """One tensor that the optimizer updates, float32, flat or not, and the pieces of parameters in it."""

    tensor: torch.Tensor
    group: int
    spans: list[Span]


@dataclass(frozen=True)
class State:
    """What one rank writes: its pieces by name, and the step and learning rate of each group of parameters."""

    rank: int
    groups: list[dict[str, float]]
    pieces: dict[str, torch.Tensor]


def is_by_name(ds_config: dict[str, Any] | None) -> bool:
    """Whether a run keeps its state so: not in ZeRO-3, and not with an optimizer from the user's own JSON, for which
    DeepSpeed writes its own files."""
    return ds_config is not None and zero_stage(ds_config) < 3 and "optimizer" not in ds_config


def has_state(checkpoint: Path) -> bool:
    """Whether a checkpoint was written so."""
    return (checkpoint / FOLDER).is_dir()


def take_state(engine: Any) -> State:
    """This rank's pieces as they are, not copies; in stage 0, where all ranks have the same, those of rank 0."""
    rank, base = torch.distributed.get_rank(), base_optimizer(engine)
    pieces, steps = {}, [0] * len(base.param_groups)
    for holder in [] if engine.zero_optimization_stage() == 0 and rank > 0 else holders(engine):
        state = base.state.get(holder.tensor, {})
        steps[holder.group] = int(state.get("step", 0))
        for kind, tensor in {WEIGHT: holder.tensor, **_moments(state)}.items():
            for span in holder.spans:
                piece = tensor.detach().reshape(-1)[span.held : span.held + span.count]
                pieces[f"{kind}@{span.start}@{span.name}"] = piece
    about = [{"step": step, "lr": float(group["lr"])} for step, group in zip(steps, base.param_groups, strict=True)]
    return State(rank, about, pieces)


def write_state(checkpoint: Path, state: State, pieces: dict[str, torch.Tensor]) -> None:
    """Write a rank's pieces, or copies of them, if it has any."""
    from safetensors.torch import save_file

    if not pieces:
        return
    (checkpoint / FOLDER).mkdir(parents=True, exist_ok=True)
    held = {name: piece.cpu() for name, piece in pieces.items()}
    metadata = {"groups": json.dumps(state.groups)}
    save_file(held, checkpoint / FOLDER / f"rank-{state.rank}.safetensors", metadata=metadata)


def load_state(engine: Any, checkpoint: Path) -> None:
    """Put every rank's pieces, of however many ranks, where they belong now: weights, their float32 copies, Adam's
    moments, steps and learning rates."""
    with Pieces(checkpoint / FOLDER) as pieces:
        with torch.no_grad():
            for name, parameter in _trained(engine):
                parameter.copy_(pieces.read(WEIGHT, name, 0, parameter.numel()).view_as(parameter))
        base = base_optimizer(engine)
        for holder in holders(engine):
            _fill(holder, base, pieces)
        for group, about in zip(base.param_groups, pieces.groups, strict=True):
            group["lr"] = about["lr"]
        has_moments = bool(pieces.kinds)
    if engine.zero_optimization_stage() > 0 and has_moments:
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # as after its first step


def base_optimizer(engine: Any) -> Any:
    """torch's optimizer (or DeepSpeed's for CPUs) within DeepSpeed's."""
    return engine.basic_optimizer


def holders(engine: Any) -> Iterator[Holder]:
    """Everything that this rank's optimizer updates."""
    names = {id(parameter): name for name, parameter in _trained(engine)}
    outer = engine.optimizer
    if engine.zero_optimization_stage() > 0:
        for number, flat in enumerate(outer.single_partition_of_fp32_groups):
            yield Holder(flat, number, list(_spans(outer.bit16_groups[number], names)))
        return
    for number, group in enumerate(base_optimizer(engine).param_groups):
        # in bf16 DeepSpeed keeps float32 copies beside the parameters, in the same order
        parameters = outer.fp16_groups[number] if hasattr(outer, "fp16_groups") else group["params"]
        for parameter, tensor in zip(parameters, group["params"], strict=True):
            yield Holder(tensor, number, [Span(names[id(parameter)], 0, 0, tensor.numel())])


def _spans(parameters: list[Any], names: dict[int, str]) -> Iterator[Span]:
    for parameter in parameters:
        mapping = parameter._hp_mapping  # None where this rank has no part of it
        if mapping is not None:
            there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Span(names[id(parameter)], there.start, here.start, here.numel)


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _moments(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {kind: value for kind, value in state.items() if torch.is_tensor(value) and value.dim() > 0}


def _fill(holder: Holder, base: Any, pieces: "Pieces") -> None:
    """One tensor of the optimizer and its moments; what no span covers is padding, and stays zero."""
    state: dict[str, Any] = {kind: torch.zeros_like(holder.tensor) for kind in pieces.kinds}
    with torch.no_grad():
        for kind, tensor in {WEIGHT: holder.tensor, **state}.items():
            flat = tensor.view(-1)
            for span in holder.spans:
                flat[span.held : span.held + span.count] = pieces.read(kind, span.name, span.start, span.count)
    if not state:  # no step had a gradient
        return
    step = pieces.groups[holder.group]["step"]
    base.state[holder.tensor] = {"step": _step(base, holder, step), **state}


def _step(base: Any, holder: Holder, step: int) -> Any:
    """torch counts in a tensor, on the GPU in its fused form; DeepSpeed's own optimizer in whole numbers."""
    if not isinstance(base, torch.optim.AdamW):
        return step
    is_fused = base.param_groups[holder.group].get("fused") or base.param_groups[holder.group].get("capturable")
    return torch.tensor(float(step), device=holder.tensor.device if is_fused else "cpu")


class Pieces:
    """The pieces of all ranks that wrote, read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files: list[Any] = [safe_open(path, framework="pt") for path in sorted(folder.glob("rank-*.safetensors"))]
        self.groups: list[dict[str, Any]] = json.loads(self._files[0].metadata()["groups"])
        self._found: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
        for file in self._files:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                kind, start, name = key.split("@", 2)
                self._found.setdefault((kind, name), []).append((int(start), file, key))
        self.kinds = sorted({kind for kind, _ in self._found} - {WEIGHT})

    def __enter__(self) -> "Pieces":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._found.clear()

    def read(self, kind: str, name: str, start: int, count: int) -> torch.Tensor:
        """Elements start ... start + count of the flat parameter."""
        parts = []
        for first, file, key in sorted(self._found[kind, name], key=lambda piece: piece[0]):
            piece = file.get_slice(key)
            begin, end = max(start - first, 0), min(start + count - first, piece.get_shape()[0])
            if begin < end:
                parts.append(piece[begin:end])
        return torch.cat(parts)
