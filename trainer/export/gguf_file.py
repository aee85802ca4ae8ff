"""A merged checkpoint in Llama's layout -> one GGUF file for llama.cpp, tensor by tensor. [I/O]

Written with llama.cpp's own package. Facts from llama.cpp's converter: query and key rows of each head are stored as
pairs, (2, head/2) -> (head/2, 2), because its rope turns neighbours; one-dimensional tensors are float32; scores and
types of the vocabulary are those of tokenizer.model, and special tokens are of type CONTROL; InternLM2's piece of a
zero byte has another name, since a C string would end there. It has no dynamic NTK: the file's context is
max_position_embeddings, up to which that changes nothing.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.errors import ConfigError
from trainer.export.stored import checkpoint_weights
from trainer.export.weights import Weight

GgufType = Literal["bf16", "f16", "q8_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("bf16", "f16", "q8_0")
NUMBERS = {"bf16": "BF16", "f16": "F16", "q8_0": "Q8_0"}
ZERO_BYTE = "\U0001f409"  # as llama.cpp's converter names it
ADDED_SCORE = -1000.0
OTHER_WAY = "llama.cpp's convert_hf_to_gguf.py reads the merged folder: merge without --gguf, then use that"


def check_exportable(config: dict[str, Any], base: Path) -> None:
    """Raise ConfigError, before anything is written, for what cannot be a GGUF file here. `config`: config.json of the
    merged checkpoint; `base`: where its tokenizer is from."""
    if find_spec("gguf") is None:
        raise ConfigError("--gguf: needs the package gguf", "pip install 'launch-trainer[gguf]'")
    rope = (config.get("rope_scaling") or {}).get("rope_type")
    problems = [
        *([f"a model of type {config['model_type']}"] if config["model_type"] != "llama" else []),
        *(["no SentencePiece tokenizer.model"] if not (base / "tokenizer.model").is_file() else []),
        *([f"a rope of type {rope}"] if rope not in (None, "dynamic", "linear") else []),
        *(["biases in the feed-forward layers"] if config.get("mlp_bias") else []),
    ]
    if problems:
        raise ConfigError(f"--gguf: got {' and '.join(problems)}, allowed: Llama's layout with a SentencePiece model",
                          OTHER_WAY)  # fmt: skip


def write_gguf(folder: Path, path: Path, kind: GgufType) -> None:
    """Write the checkpoint of a folder, and its tokenizer, as one file. Raises ConfigError, OSError."""
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(None, "llama")
    _add_shape(writer, config, folder.name if path.stem.startswith(".") else path.stem, kind)
    _add_vocabulary(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {}
    for name, weight in checkpoint_weights(folder).items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ConfigError(f"{folder}: llama.cpp has no place for {name}", OTHER_WAY)
        tensors[new] = (name, weight, _number_type(weight, kind))
        shape, size = _stored_shape(weight, tensors[new][2])
        writer.add_tensor_info(new, shape, _numpy_type(tensors[new][2]), size, raw_dtype=tensors[new][2])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight, number_type in tensors.values():
        values = _paired(name, weight.whole().float(), config)
        writer.write_tensor_data(gguf.quants.quantize(values.numpy(), number_type))
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any], name: str, kind: GgufType) -> None:
    import gguf

    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{NUMBERS[kind]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Pieces, scores and types of tokenizer.model, with the special tokens that transformers' tokenizer knows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    pieces = vocabulary(folder / "tokenizer.model", tokenizer, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_add_space_prefix(_adds_blank(tokenizer))
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    stops = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    turn_end = [number for number in stops if number != tokenizer.eos_token_id]
    writer.add_bos_token_id(tokenizer.bos_token_id)
    # one end is all that the format has; a chat ends with the turn's
    writer.add_eos_token_id(turn_end[0] if turn_end else tokenizer.eos_token_id)
    if turn_end:
        writer.add_eot_token_id(turn_end[0])
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def vocabulary(model: Path, tokenizer: Any, size: int) -> list[tuple[bytes, float, int]]:
    """Text, score and type (gguf.TokenType) of every id. Raises ConfigError for ids beyond the embedding."""
    import gguf
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model))
    kinds = gguf.TokenType
    pieces = [(f"[PAD{number}]".encode(), ADDED_SCORE, int(kinds.UNUSED)) for number in range(size)]
    added = tokenizer.added_tokens_decoder
    beyond = max([processor.vocab_size() - 1, *added])
    if beyond >= size:
        raise ConfigError(f"{model}: a token with id {beyond}, but the model has {size} embeddings", OTHER_WAY)
    for number in range(processor.vocab_size()):
        text = processor.IdToPiece(number)
        kind = kinds.NORMAL
        if processor.IsUnknown(number):
            kind = kinds.UNKNOWN
        elif processor.IsControl(number):
            kind = kinds.CONTROL
        elif processor.IsByte(number):
            kind = kinds.BYTE
        elif processor.IsUnused(number) or text.startswith("[UNUSED"):
            kind = kinds.UNUSED
        text = ZERO_BYTE if text == "\0" else text
        pieces[number] = (text.encode(), processor.GetScore(number), int(kind))
    for number, token in added.items():
        kind = kinds.CONTROL if token.special else kinds.USER_DEFINED
        kind = kinds.UNKNOWN if number == tokenizer.unk_token_id else kind
        pieces[number] = (token.content.encode(), ADDED_SCORE, int(kind))
    return pieces


def _adds_blank(tokenizer: Any) -> bool:
    """Whether a text begins with a blank that it does not have, as in Llama's original tokenizer."""
    first = tokenizer("a", add_special_tokens=False).input_ids[:1]
    return bool(tokenizer.convert_ids_to_tokens(first)[0].startswith("\u2581"))


def _paired(name: str, values: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Rows of q and k in llama.cpp's order; biases too."""
    for matrix, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f".{matrix}." in name:
            grouped = values.view(config[heads], 2, -1, *values.shape[1:])
            return grouped.transpose(1, 2).reshape(values.shape).contiguous()
    return values


def _number_type(weight: Weight, kind: GgufType) -> Any:
    import gguf

    plain = len(weight.shape) == 1
    wide = weight.shape[-1] % 32 == 0  # blocks of q8_0
    name = "F32" if plain else NUMBERS[kind] if wide or kind != "q8_0" else "F16"
    return gguf.GGMLQuantizationType[name]


def _stored_shape(weight: Weight, number_type: Any) -> tuple[tuple[int, ...], int]:
    """Shape of the array that holds it (bytes for what numpy has no type for), and its size in bytes."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[number_type]
    row = weight.shape[-1] // block * size
    rows = 1
    for length in weight.shape[:-1]:
        rows *= length
    if number_type.name in ("F32", "F16"):
        return weight.shape, rows * row
    return (*weight.shape[:-1], row), rows * row


def _numpy_type(number_type: Any) -> Any:
    import numpy

    return {"F32": numpy.dtype("float32"), "F16": numpy.dtype("float16")}.get(number_type.name, numpy.dtype("uint8"))
