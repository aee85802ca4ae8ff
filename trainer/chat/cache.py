"""Keys and values kept from one turn to the next: a prompt that begins as the last one did is not computed again."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from trainer.chat.answer import rope_types

# kinds of rotary embedding that turn a token by its place alone; others by the length of the text too
FIXED_ROPE = {"default", "linear", "llama3", "yarn"}
BLOCK = 1024  # tokens by which the room of a fixed cache grows


class PromptCache:
    """Of one model, for prompts one after the other. `fixed`: in one place, with room for prompt and answer, as
    trainer.chat.replay needs it."""

    def __init__(self, config: Any, *, fixed: bool = False) -> None:
        text = config.get_text_config()
        self._config, self._fixed, self._room = config, fixed, 0
        self._longest = None if rope_types(text) <= FIXED_ROPE else getattr(text, "max_position_embeddings", 0)
        self._ids: list[int] = []
        self._cache: Any = None

    def take(self, ids: Sequence[int], room: int) -> tuple[Any, int]:
        """What `generate` shall go on from, and the tokens in it; `room`: the answer's greatest length. Until `keep` is
        called nothing is kept: an answer that fails leaves a cache in which layers differ."""
        known, self._ids = self._ids, []
        # the last token is always computed: its logits are the first of the answer
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, ids[:-1], strict=False)))
        length = len(ids) + room
        if not common or not self._stays_right(length) or (self._fixed and length > self._room):
            self._cache = self._new(length)
            return self._cache, 0
        if common < len(known):
            self._drop(len(known) - common)
        return self._cache, common

    def keep(self, ids: Sequence[int]) -> None:
        """After an answer: `ids` are the prompt's and the answer's."""
        from transformers.cache_utils import DynamicLayer, StaticLayer

        # layers that see a window have dropped what they would need
        if all(type(layer) in (DynamicLayer, StaticLayer) for layer in self._cache.layers):
            self._ids = list(ids[: int(self._cache.get_seq_length())])

    def _new(self, length: int) -> Any:
        from transformers import DynamicCache, StaticCache

        if not self._fixed:
            return DynamicCache(config=self._config)
        self._room = -(-length // BLOCK) * BLOCK
        return StaticCache(config=self._config, max_cache_len=self._room)

    def _drop(self, tokens: int) -> None:
        """The last of them; a fixed cache overwrites them."""
        if not self._fixed:
            self._cache.crop(-tokens)
            return
        for layer in self._cache.layers:
            layer.cumulative_length.sub_(tokens)

    def _stays_right(self, length: int) -> bool:
        return self._longest is None or length <= self._longest
