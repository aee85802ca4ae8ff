"""A tiny XComposer2 for a tokenizer of any size."""

import json

from trainer.new_model.seeded import write_weights
from trainer.new_model.sizes import find_size

FAMILY = "xcomposer2"
CARD, TINY = find_size(FAMILY, "tiny")
IMAGE_SIZE = TINY["img_size"]


def write_xcomposer2(folder, vocab_size, seed=1, **changed):
    """Config and weights in the makers' layout, without a tokenizer. `changed`: keys of config.json."""
    raw = {**TINY, "vocab_size": vocab_size, **changed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    write_weights(CARD, raw, folder, seed)
    return folder
