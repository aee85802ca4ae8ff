"""A small InternLM2 made from nothing: its tokenizer from the job's own texts, its weights from the seed. [I/O]"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.config.job import Shape
from trainer.errors import ConfigError
from trainer.families.internlm2 import SLOTS, from_llama, internlm2_config
from trainer.families.xcomposer2_shape import MODEL_TYPE as XCOMPOSER2

CHAT_TOKENS = list(SLOTS.values())
# family -> what the makers call its tokenizer's class
TOKENIZERS = {"internlm": "InternLM", "internlm2": "InternLM2", "internlm3": "InternLM3",
              XCOMPOSER2: "InternLMXComposer2"}  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Write `tokenizer.model` (SentencePiece BPE with InternLM2's six chat tokens) and its config into `folder`."""
    try:
        model = train_pieces(texts, vocab_size, CHAT_TOKENS)
    except RuntimeError as error:
        raise ConfigError(
            f"model.shape.vocab_size: got {vocab_size}: {str(error).strip().splitlines()[-1]}",
            "lower vocab_size, or give more text",
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    describe_pieces(folder, "internlm2", CHAT_TOKENS)
    (folder / "config.json").write_text(json.dumps({"model_type": "internlm2"}), encoding="utf-8")
    part = folder / ".tokenizer.model.part"  # whoever finds the model finds it whole, and everything beside it
    part.write_bytes(model)
    part.replace(folder / "tokenizer.model")


def train_pieces(texts: Iterable[str], vocab_size: int, tokens: list[str]) -> bytes:
    """A SentencePiece BPE model with InternLM2's settings: no text is changed. Raises RuntimeError when the texts have
    too few pieces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=tokens,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def describe_pieces(folder: Path, family: str, tokens: list[str]) -> None:
    """Write the tokenizer_config.json of a `tokenizer.model` that has the chat tokens `tokens`."""
    config = {
        "tokenizer_class": f"{TOKENIZERS[family]}Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "add_bos_token": True,
        "additional_special_tokens": tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def new_model(shape: Shape, seed: int) -> Any:
    """A LlamaForCausalLM of this shape with seeded random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=shape.max_positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )


def save_internlm2(weights: dict[str, Any], config: Any, folder: Path, stop_ids: list[int]) -> None:
    """Write Llama weights as an InternLM2 checkpoint: fused wqkv in safetensors, and its configs."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(from_llama(weights, config), folder, max_shard_size="4GB")
    (folder / "config.json").write_text(json.dumps(internlm2_config(config), indent=1) + "\n", encoding="utf-8")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": stop_ids, "pad_token_id": config.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
