"""Reading checkpoints: which files count, what is said of broken ones, and how much memory it takes."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer import load_memory, warm
from tests.trainer.reference import BY_NAME, write_checkpoint
from tests.trainer.test_families import CPU, job
from trainer.errors import ConfigError
from trainer.families.registry import CARDS
from trainer.families.weights import read_tensors
from trainer.models.load import load_model
from trainer.models.quantise import in_4bit
from trainer.new_model.seeded import write_weights

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def sharded(tmp_path):
    """A Llama in two shards, and its weights by file."""
    weights = write_checkpoint(tmp_path, BY_NAME["llama"])
    (tmp_path / "model.safetensors").unlink()
    parts = {FIRST: {}, SECOND: {}}
    for name, tensor in weights.items():
        parts[SECOND if ".1." in name or name == NORM else FIRST][name] = tensor
    for file, held in parts.items():
        save_file(held, tmp_path / file)
    places = {name: file for file, held in parts.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return tmp_path, parts


def as_bin(folder, parts):
    """The same as .bin files, with their index."""
    places = {}
    for file, held in parts.items():
        (folder / file).unlink()
        name = file.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        torch.save(held, folder / name)
        places |= dict.fromkeys(held, name)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder / "pytorch_model-00002-of-00002.bin"


def problem(folder):
    with pytest.raises(ConfigError) as found:
        load_model(job(folder), CPU)
    return found.value.message


def test_the_index_says_which_files_are_the_checkpoint(sharded):
    folder, parts = sharded
    for stray in ("consolidated.safetensors", "adapter_model.safetensors", "model-00003-of-00003.safetensors"):
        (folder / stray).write_bytes(b"not read")
    state = load_model(job(folder), CPU).state_dict()
    assert all(torch.equal(tensor, state[name]) for held in parts.values() for name, tensor in held.items())


def test_shards_without_an_index_are_counted_by_their_names(sharded):
    folder, _ = sharded
    (folder / "model.safetensors.index.json").unlink()
    load_model(job(folder), CPU)
    (folder / FIRST).unlink()
    assert problem(folder) == f"{folder / FIRST}: is missing, but {SECOND} is there"


def test_bin_files_are_read_as_safetensors_are(sharded):
    folder, parts = sharded
    as_bin(folder, parts)
    state = load_model(job(folder), CPU).state_dict()
    assert all(torch.equal(tensor, state[name]) for held in parts.values() for name, tensor in held.items())


def test_bin_files_of_before_torch_1_6_are_read(sharded):
    folder, parts = sharded
    path = as_bin(folder, parts)
    torch.save(parts[SECOND], path, _use_new_zipfile_serialization=False)
    load_model(job(folder), CPU)


def test_a_missing_shard_is_named_with_what_it_holds(sharded):
    folder, parts = sharded
    (folder / SECOND).unlink()
    first = next(iter(parts[SECOND]))
    assert f"{folder / SECOND}: is missing, but model.safetensors.index.json says that it holds" in problem(folder)
    assert first.rpartition(".1.")[0] in problem(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_that_is_cut_short_is_named_with_a_weight(sharded, kind):
    folder, parts = sharded
    path = folder / SECOND if kind == "safetensors" else as_bin(folder, parts)
    os.truncate(path, path.stat().st_size - 5)
    found = problem(folder)
    assert found.startswith(f"{path}") and "cut short" in found
    assert any(name in found for name in parts[SECOND])


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 4000, b"<html>404</html>" * 100])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_of_something_else_is_named(sharded, kind, content):
    folder, parts = sharded
    path = folder / SECOND if kind == "safetensors" else as_bin(folder, parts)
    path.write_bytes(content)
    assert problem(folder).startswith(f"{path}")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_weight_that_its_shard_has_not_is_named(sharded, kind):
    folder, parts = sharded
    path = folder / SECOND
    if kind == "bin":
        path = as_bin(folder, parts)
    del parts[SECOND][NORM]
    (save_file if kind == "safetensors" else torch.save)(parts[SECOND], path)
    assert problem(folder) == f"{path}: weight {NORM} is missing, though the index says that it is there"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_weight_of_another_shape_is_named_with_its_file(sharded, kind):
    folder, parts = sharded
    path = folder / SECOND
    if kind == "bin":
        path = as_bin(folder, parts)
    parts[SECOND][NORM] = torch.zeros(31)
    (save_file if kind == "safetensors" else torch.save)(parts[SECOND], path)
    assert problem(folder) == (
        f"{path}: weight {NORM}: got shape [31] for {NORM}, allowed: [32] (config.json)"
    )


def test_a_fused_weight_that_cannot_be_cut_is_named(tmp_path):
    weights = write_checkpoint(tmp_path, BY_NAME["internlm2"])
    name = "model.layers.1.attention.wqkv.weight"
    save_file({**weights, name: torch.zeros(61, 32)}, tmp_path / "model.safetensors")
    assert problem(tmp_path).startswith(f"{tmp_path / 'model.safetensors'}: weight {name}: got shape [61, 32]")


def test_an_index_cannot_name_files_elsewhere(sharded):
    folder, _ = sharded
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "it names files of another folder" in problem(folder)


def test_an_adapters_folder_is_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["llama"])
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "no weights, allowed: model.safetensors or pytorch_model.bin" in problem(tmp_path)


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


@pytest.mark.parametrize("whole", [True, False])
def test_code_in_a_bin_file_is_refused_and_never_run(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    weights = write_checkpoint(tmp_path, BY_NAME["llama"])
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    if whole:
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({**weights, "more": Evil()}, path)
    found = problem(tmp_path)
    assert found.startswith(f"{path}: holds more than tensors, or is no checkpoint; none of its code was run")
    assert not (tmp_path / "evil").exists()


def test_a_bin_file_with_something_else_under_a_name_says_which(tmp_path):
    weights = write_checkpoint(tmp_path, BY_NAME["llama"])
    (tmp_path / "model.safetensors").unlink()
    torch.save({"state_dict": weights}, tmp_path / "pytorch_model.bin")
    assert "got a dict under state_dict, allowed: a tensor under each name" in problem(tmp_path)


def test_pain_12_a_head_of_its_own_is_not_lost_to_tying(tmp_path):
    """Pain 12 (transformers#45127): a head that was trained on its own, under a config that says it is tied."""
    weights = write_checkpoint(tmp_path, BY_NAME["qwen2"])
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    assert "config.json says tie_word_embeddings true, but lm_head.weight is not the embedding" in problem(tmp_path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    model = load_model(job(tmp_path), CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_transformers_saves_in_bf16_comes_back_in_its_own_precision(tmp_path):
    weights = write_checkpoint(tmp_path, BY_NAME["llama"])
    halves = {name: tensor.half() for name, tensor in weights.items()}
    save_file(halves, tmp_path / "model.safetensors")
    state = load_model(job(tmp_path, dtype="bf16"), CPU).state_dict()
    assert all(torch.equal(state[name], tensor.bfloat16()) for name, tensor in halves.items())
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.bfloat16"}


def test_buffers_are_computed_in_float32_whatever_the_model_is_in(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["gemma3_text"])
    model = load_model(job(tmp_path, dtype="bf16", quantization="nf4"), CPU)
    buffers = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert buffers and {str(buffer.dtype) for buffer in buffers.values()} == {"torch.float32"}
    assert not [name for name, buffer in model.named_buffers() if buffer.is_meta]


def test_four_bit_weights_are_bitsandbytes_own_to_the_bit():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(2100, 1024).bfloat16()  # several pieces, the last one short
    ours = in_4bit(weight, torch.bfloat16, CPU, torch.nn.Module())
    data, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4", quant_storage=torch.bfloat16)
    assert torch.equal(ours.data.view(torch.uint8), data.view(torch.uint8))
    assert torch.equal(dequantize_4bit(ours.data, ours.quant_state), dequantize_4bit(data, state))


SIZES = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 6000, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
         "rope_theta": 1e6, "bias": False}  # fmt: skip
SHARD = 12 * 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A seeded InternLM2 in five shards, as safetensors and as .bin, and a small one to begin with."""
    folder = tmp_path_factory.mktemp("large")
    raw = {"model_type": "internlm2", **SIZES}
    for name in ("safetensors", "bin"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(raw))
        write_weights(CARDS["internlm2"], raw, folder / name, 1, SHARD)
    parts = {path.name: load_file(path) for path in (folder / "bin").glob("*.safetensors")}
    as_bin(folder / "bin", parts)
    write_checkpoint(folder / "small", BY_NAME["internlm2"])
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_holds_at_most_the_largest_shard_besides_the_model(large, tmp_path, kind, quantization):
    place = (tmp_path / "peaks.json", large / "small", large / kind, quantization)
    process = warm.SERVER.Process(target=load_memory.load_and_measure, args=place)
    process.start()
    process.join(warm.PATIENCE_S)
    assert process.exitcode == 0
    files = [path.stat().st_size for path in (large / kind).iterdir() if path.suffix in (".safetensors", ".bin")]
    assert len(files) >= 4
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    assert len(peaks) == 1 + len(list(read_tensors(large / kind)))
    assert max(peaks) < 1.3 * max(files)
    assert max(peaks) < sum(files) / 2, "the model is too small to prove anything"
