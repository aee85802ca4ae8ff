"""What makes a model family. Imports no torch: the launcher sizes models by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.families.shape import ModelShape

if TYPE_CHECKING:
    import torch

Weights = list[tuple[str, "torch.Tensor"]]


@dataclass(frozen=True)
class NewModels:
    """Models of random weights (`launch new-model`): the class that config.json names, the fields that all sizes share,
    and those of each size, `tiny` among them. `tokens`: their chat tokens, where the template does not say all of them;
    `has_pieces`: their tokenizer is SentencePiece's own file."""

    architecture: str
    shared: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]
    tokens: tuple[str, ...] = ()
    has_pieces: bool = False


@dataclass(frozen=True)
class Layout:
    """The makers' own layout, where it is not that of transformers' class: `weights` of the class back under their
    names; `unused`: name -> shape of what their checkpoints have besides."""

    weights: Callable[[dict[str, "torch.Tensor"], Any], dict[str, "torch.Tensor"]]
    unused: Callable[[Any], dict[str, Any]] = lambda config: {}


@dataclass(frozen=True)
class Card:
    """One family, whose `name` is the model_type of its config.json.

    Loading, where torch is imported: `config`: raw config.json -> config of transformers' class; `model`: config ->
    model, called where parameters get no memory; `convert`: one weight of the checkpoint (name, tensor, config) ->
    weights of the class. `layout`: see Layout.

    Size: `biases`: which linear layers have some (qkv, out, mlp) -> the key of config.json that says so; `defaults`:
    what a config.json may leave to the model's code; `traits`: fields of ModelShape that all its models have;
    `more_shape`: what it has besides (shape, fields of config.json); `hub`: shapes by their names on the hub.

    Chat: `template`: that of the makers' chat models; `guess`: the likeliest, of a family that has several; `kin`:
    other model types whose models chat alike; `slots`: id -> chat token of a vocabulary of `slots_vocab` tokens.

    `zero_norms`: norms hold their distance from one (Gemma).
    """

    name: str
    config: Callable[[dict[str, Any]], Any]
    model: Callable[[Any], Any]
    convert: Callable[[str, "torch.Tensor", Any], Weights]
    layout: Layout | None = None
    biases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    traits: Mapping[str, Any] = field(default_factory=dict)
    more_shape: Callable[[ModelShape, Mapping[str, Any]], ModelShape] | None = None
    hub: Mapping[str, ModelShape] = field(default_factory=dict)
    template: str | None = None
    guess: str | None = None
    kin: tuple[str, ...] = ()
    slots: Mapping[int, str] = field(default_factory=dict)
    slots_vocab: int = 0
    zero_norms: bool = False
    new: NewModels | None = None
