"""Keys and values kept from one turn to the next: a prompt that begins as the last one did is not computed again."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from trainer.answer import rope_types

# kinds of rotary embedding that turn a token by its place alone; others by the length of the text too
FIXED_ROPE = {"default", "linear", "llama3", "yarn"}


class PromptCache:
    """Of one model, for prompts one after the other."""

    def __init__(self, config: Any) -> None:
        text = config.get_text_config()
        self._config = config
        self._longest = None if rope_types(text) <= FIXED_ROPE else getattr(text, "max_position_embeddings", 0)
        self._ids: list[int] = []
        self._cache: Any = None

    def take(self, ids: Sequence[int], room: int) -> tuple[Any, int]:
        """What `generate` shall go on from, and the tokens in it; `room`: the answer's greatest length. Until `keep` is
        called nothing is kept: an answer that fails leaves a cache in which layers differ."""
        from transformers import DynamicCache

        known, self._ids = self._ids, []
        # the last token is always computed: its logits are the first of the answer
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, ids[:-1], strict=False)))
        if not common or not self._stays_right(len(ids) + room):
            self._cache = DynamicCache(config=self._config)
            return self._cache, 0
        if common < len(known):
            self._cache.crop(common - len(known))
        return self._cache, common

    def keep(self, ids: Sequence[int]) -> None:
        """After an answer: `ids` are the prompt's and the answer's."""
        from transformers.cache_utils import DynamicLayer

        # layers that see a window have dropped what they would need
        if all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self._ids = list(ids[: self._cache.get_seq_length()])

    def _stays_right(self, length: int) -> bool:
        return self._longest is None or length <= self._longest
