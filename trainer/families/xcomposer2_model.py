"""InternLM-XComposer2: a CLIP ViT-L/14, a projector of two layers, and InternLM2 with partial LoRA, which changes the
linear layers at image positions alone.

Facts from the makers' modeling_internlm_xcomposer2.py and build_mlp.py (and arXiv:2401.16420): the features are the
tower's last hidden state without the class token; its table of positions is resized to the model's own image size;
every image stands in the sequence as its (size / 14)^2 patches. Shapes: B rows, T tokens, N images, P patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trainer.families.internlm2 import llama_config as internlm2_config
from trainer.families.internlm2_layout import split_wqkv, to_llama
from trainer.families.rope import DynamicNTK
from trainer.families.xcomposer2_config import POSITIONS, TOWER
from trainer.families.xcomposer2_shape import MODEL_TYPE, PLORA_RANK, vision_sizes

# name in the checkpoint -> the linear layers of Llama that it is (without _proj: PEFT looks for names that end so), and
# the half of the layer where these are
PLORA = {
    "wqkv": ("self_attn", ("q", "k", "v")),
    "wo": ("self_attn", ("o",)),
    "w1": ("mlp", ("gate",)),
    "w3": ("mlp", ("up",)),
    "w2": ("mlp", ("down",)),
}


class XComposer2Config(LlamaConfig):  # type: ignore[misc]  # transformers has no types
    """A LlamaConfig with `vision_config` (of a CLIPVisionConfig), `plora_rank` and `plora_alpha`."""

    model_type = MODEL_TYPE


class Factor(nn.Module):
    """A matrix [outputs, inputs]. No nn.Linear: those are quantised, and get adapters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, inputs] -> [M, outputs]."""
        return functional.linear(x.to(self.weight.dtype), self.weight)


class PartialLora(nn.Module):
    """The low-rank terms of one matrix of the checkpoint, of which Llama may have several parts: these share `a`."""

    def __init__(self, rank: int, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        (inputs,) = {found for found, _ in sizes.values()}
        self.a = Factor(inputs, rank)
        self.b = nn.ModuleDict({part: Factor(rank, outputs) for part, (_, outputs) in sizes.items()})

    def forward(self, x: torch.Tensor, part: str) -> torch.Tensor:
        """x [M, inputs] -> what a part's output changes by, [M, outputs]."""
        change: torch.Tensor = self.b[part](self.a(x))
        return change


class XComposer2DecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer, whose linear layers get their low-rank terms at image positions."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scale = config.plora_alpha / config.plora_rank
        self.plora = nn.ModuleDict()
        for name, (half, parts) in PLORA.items():
            linears = {part: self._linear(half, part) for part in parts}
            sizes = {part: (linear.in_features, linear.out_features) for part, linear in linears.items()}
            self.plora[name] = PartialLora(config.plora_rank, sizes)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, image_at: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """image_at: image positions, int64 indices into the B*T tokens; None where there are none."""
        if image_at is None:
            return super().forward(hidden_states, *args, **kwargs)
        with self._added_at(image_at):
            return super().forward(hidden_states, *args, **kwargs)

    @contextmanager
    def _added_at(self, image_at: torch.Tensor) -> Iterator[None]:
        """Hooks for one pass: quantised layers and adapters may take a linear layer's place, and a pass that is
        computed again in the backward pass brings its own positions."""
        hooks = [
            self._linear(half, part).register_forward_hook(self._hook(name, part, image_at))
            for name, (half, parts) in PLORA.items()
            for part in parts
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _linear(self, half: str, part: str) -> Any:
        return getattr(getattr(self, half), f"{part}_proj")

    def _hook(self, name: str, part: str, image_at: torch.Tensor) -> Any:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            change = self.plora[name](inputs[0].flatten(0, 1)[image_at], part) * self.scale
            return output.flatten(0, 1).index_add(0, image_at, change.to(output.dtype)).view_as(output)

        return add


class XComposer2ForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The whole model. Its decoder is Llama's, with InternLM2's weights (trainer.families.internlm2)."""

    config_class = XComposer2Config
    _can_compile_fullgraph = False  # it asks where images are

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers = [XComposer2DecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        self.model.layers = nn.ModuleList(layers)
        if config.rope_parameters["rope_type"] == "dynamic":
            self.model.rotary_emb = DynamicNTK(config)
        vision = CLIPVisionConfig(**config.vision_config)
        tower = CLIPVisionModel(vision)
        self.vit = getattr(tower, "vision_model", tower)  # transformers 5.20 took a layer of names away
        self.vit.post_layernorm = nn.Identity()  # of the class token's output, which is not used
        self.vision_proj = nn.Sequential(
            nn.Linear(vision.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values float [N, 3, size, size] -> [N, P, hidden]. The tower is never trained."""
        with torch.no_grad():
            patches = self.vit(pixel_values.to(self.vit.pre_layrnorm.weight.dtype)).last_hidden_state[:, 1:]
        features: torch.Tensor = self.vision_proj(patches)
        return features

    def forward(  # noqa: PLR0913, PLR0917  (generate looks for these names)
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,  # as older versions of transformers call it
        **kwargs: Any,
    ) -> Any:
        """As Llama's. image_mask: bool [B, T], the image positions, which take the N images' features in their order
        (whatever id stands there). Raises ValueError when there are more or fewer than N*P."""
        kwargs |= {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "logits_to_keep": logits_to_keep,
        }
        held = {"cache": cache, "past_key_values": past_key_values}
        kwargs |= {name: value for name, value in held.items() if value is not None}
        if image_mask is None or pixel_values is None:
            return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        features = self.image_features(pixel_values).flatten(0, 1)
        image_at = image_mask.flatten().nonzero().squeeze(1)
        if len(image_at) != len(features):
            raise ValueError(f"got {len(image_at)} image positions, expected {len(features)}, the images' patches")
        embeds = self.get_input_embeddings()(input_ids)
        spliced = embeds.flatten(0, 1).index_copy(0, image_at, features.to(embeds.dtype)).view_as(embeds)
        return super().forward(inputs_embeds=spliced, image_at=image_at, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the images, those among the tokens that this step computes: with a cache, none after the first."""
        pixels, mask = kwargs.pop("pixel_values", None), kwargs.pop("image_mask", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if pixels is None or mask is None or inputs.get("input_ids") is None:
            return inputs
        new = input_ids.shape[1] - mask.shape[1]
        seen = functional.pad(mask, (0, new))[:, -inputs["input_ids"].shape[1] :]
        images = len(pixels) * int(seen.sum()) // int(mask.sum())
        if images:
            inputs |= {"image_mask": seen, "pixel_values": pixels[-images:]}
        return inputs


def llama_config(raw: dict[str, Any]) -> XComposer2Config:
    """The config of a model for a config.json that is `completed`."""
    base = internlm2_config(raw).to_dict()
    rank = raw.get("plora_rank", PLORA_RANK)
    return XComposer2Config(
        **{key: value for key, value in base.items() if key not in ("model_type", "architectures")},
        vision_config={**vision_sizes(raw), "image_size": raw["img_size"]},
        plora_rank=rank,
        plora_alpha=raw.get("plora_alpha", rank),
    )


def convert(name: str, tensor: torch.Tensor, config: Any) -> list[tuple[str, torch.Tensor]]:
    """One weight of the makers' layout as weights of XComposer2ForCausalLM."""
    if name.startswith(TOWER):
        return _tower_weight(name.removeprefix(TOWER), tensor, config)
    if ".Plora_" in name:
        return _plora_weight(name, tensor, config)
    return to_llama(name, tensor, config)


def resize_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """A table of positions [1 + S*S, width] for side x side patches: the grid by bicubic interpolation (corners not
    aligned), the class token's row as it is."""
    old = round((len(table) - 1) ** 0.5)
    if old == side:
        return table
    grid = table[1:].float().T.reshape(1, -1, old, old)
    resized = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized.flatten(2)[0].T.to(table.dtype)])


def _tower_weight(name: str, tensor: torch.Tensor, config: Any) -> list[tuple[str, torch.Tensor]]:
    if name.startswith("post_layernorm.") or name.endswith("position_ids"):
        return []
    if name == POSITIONS:
        tensor = resize_positions(tensor, config.vision_config["image_size"] // config.vision_config["patch_size"])
    return [(f"vit.{name}", tensor)]


def _plora_weight(name: str, tensor: torch.Tensor, config: Any) -> list[tuple[str, torch.Tensor]]:
    """`model.layers.N.attention.wqkv.Plora_A.weight` and the like; B of wqkv has its rows in groups of heads."""
    layer, _, rest = name.rpartition(".Plora_")
    layer, _, matrix = layer.rpartition(".")
    home = f"{layer.rpartition('.')[0]}.plora.{matrix}"
    if rest == "A.weight":
        return [(f"{home}.a.weight", tensor)]
    heads = (config.num_attention_heads, config.num_key_value_heads)
    parts = split_wqkv(tensor, *heads) if matrix == "wqkv" else (tensor,)
    return [(f"{home}.b.{part}.weight", value) for part, value in zip(PLORA[matrix][1], parts, strict=True)]
