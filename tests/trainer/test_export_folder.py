"""A merged folder without us: in plain transformers, and as a GGUF file; its tokenizer, template and stop tokens."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.trainer.conftest import load_tokenizer
from tests.trainer.merging import save_base, save_run
from tests.trainer.test_merge import merged
from trainer.checkpoints.results import describe, find_result
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.export.companions import check_tokenizer, write_tokenizer
from trainer.export.gguf_file import GGUF_TYPES, check_exportable, write_gguf

FOREIGN = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trainer", "launcher", "tests"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
try:
    import trainer
except ImportError:
    pass
else:
    sys.exit("the trainer can be imported")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
chat = json.loads(sys.argv[1])
class Ends(torch.nn.Module):  # a head that answers with the end of a turn
    def __init__(self, size, end):
        super().__init__()
        self.size, self.end = size, end
    def forward(self, hidden):
        logits = torch.zeros(*hidden.shape[:-1], self.size)
        logits[..., self.end] = 1
        return logits
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    free = model.generate(**prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    model.lm_head = Ends(model.config.vocab_size, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    ended = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    print("FOUND", json.dumps({
        "chat": tokenizer.apply_chat_template(chat, return_dict=False),
        "plain": tokenizer(chat[0]["content"]).input_ids,
        "class": type(model).__name__, "dtype": str(model.dtype), "eos": model.generation_config.eos_token_id,
        "free": free.shape[1] - prompt["input_ids"].shape[1], "ended": ended[0, prompt["input_ids"].shape[1]:].tolist(),
    }))
"""
# family -> transformers' class of what was merged
CLASSES = {**dict.fromkeys(("internlm", "internlm2", "internlm2.5", "internlm3", "llama"), "LlamaForCausalLM"),
           "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM",
           "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
           "phi3": "Phi3ForCausalLM", "olmo": "OlmoForCausalLM"}  # fmt: skip
CHAT = [{"role": "user", "content": "Who wrote it?\n Tell me."}, {"role": "assistant", "content": "Nobody."}]


@pytest.fixture(scope="module")
def exports(tmp_path_factory, small_tokenizer_folder):
    """Family -> a merged model of it."""
    folder = tmp_path_factory.mktemp("exports")
    for family in CLASSES:
        base = save_base(folder / family / "base", family, small_tokenizer_folder)
        merged(describe(find_result(save_run(folder / family / "out", base))), folder / family / "merged")
    return {family: folder / family / "merged" for family in CLASSES}


@pytest.fixture(scope="module")
def export(exports):
    """A merged InternLM2 in Llama's layout."""
    return exports["internlm2"]


@pytest.fixture(scope="module")
def abroad(exports):
    """Family -> what a process that cannot import our code finds in its merged folder."""
    command = [sys.executable, "-I", "-c", FOREIGN, json.dumps(CHAT), *map(str, exports.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return dict(zip(exports, map(json.loads, lines), strict=True))


def as_training_encodes(tokenizer, chat):
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"])
    segments = encoder.template.render([Message(turn["role"], turn["content"]) for turn in chat])
    return encoder.encode([segments])[0].ids


@pytest.mark.parametrize("family", CLASSES)
def test_a_process_without_our_code_generates_and_stops(family, exports, abroad):
    """Pains 2 and 3: the served model ends at every stop token of training, after the prompt of training."""
    tokenizer = load_tokenizer(str(exports[family].with_name("base")))
    found, end = abroad[family], tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (found["class"], found["dtype"], found["eos"]) == (CLASSES[family], "torch.bfloat16", [2, end])
    assert (found["free"], found["ended"]) == (5, [end])
    assert found["chat"] == as_training_encodes(tokenizer, CHAT)
    assert found["plain"] == tokenizer(CHAT[0]["content"]).input_ids


def test_stops_of_the_template_are_in_the_generation_config_with_the_bases_own_settings(
    tmp_path, small_tokenizer_folder
):
    """Pain 2."""
    base = save_base(tmp_path / "base", "internlm2", small_tokenizer_folder)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.8, "do_sample": True}))
    merged(describe(find_result(save_run(tmp_path / "out", base))), tmp_path / "merged")
    found = json.loads((tmp_path / "merged/generation_config.json").read_text())
    end = load_tokenizer(str(base)).convert_tokens_to_ids("<|im_end|>")
    ids = {"eos_token_id": [2, end], "bos_token_id": 1, "pad_token_id": 2}
    assert found == {**ids, "temperature": 0.8, "do_sample": True}


def test_the_chat_template_is_that_of_training_in_both_places(export):
    """Pain 3, merge side."""
    text = TEMPLATES["internlm2"].jinja()
    assert (export / "chat_template.jinja").read_text() == text
    assert json.loads((export / "tokenizer_config.json").read_text())["chat_template"] == text


@pytest.mark.parametrize(("family", "stops"), [("internlm2", [2, 92542]), ("internlm", [2, 103028])])
def test_real_tokenizers_keep_their_ids_under_a_llama(family, stops, tmp_path, request):
    source = request.getfixturevalue(f"real_{family}")
    tokenizer, template = load_tokenizer(str(source)), TEMPLATES[family]
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write_tokenizer(folder, tokenizer, template.jinja())
    check_tokenizer(folder, tokenizer, template)
    again = AutoTokenizer.from_pretrained(folder)
    assert again.convert_tokens_to_ids(["</s>", template.stop[0]]) == stops
    assert len(again) == len(tokenizer)


def test_a_tokenizer_that_reads_back_otherwise_is_told(export, small_tokenizer, tmp_path):
    """What a tokenizer_config that says LlamaTokenizer would do."""
    path = tmp_path / "tokenizer.json"
    changed = json.loads((export / "tokenizer.json").read_text())
    token = next(token for token in changed["added_tokens"] if token["content"] == "<|im_end|>")
    token["content"] = "<|other|>"
    path.write_text(json.dumps(changed))
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text((export / name).read_text())
    with pytest.raises(ConfigError, match="the tokenizer written there has"):
        check_tokenizer(tmp_path, small_tokenizer, TEMPLATES["internlm2"])


def interleaved(weight, heads):
    """llama.cpp's order of the rows of q and k: each head's halves in turns. Loops instead of tricks."""
    head = weight.shape[0] // heads
    order = [one * head + half * (head // 2) + place
             for one in range(heads) for place in range(head // 2) for half in (0, 1)]  # fmt: skip
    return weight[order]


def gguf_fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_a_gguf_file_holds_the_weights_as_llama_cpp_wants_them(kind, export, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    write_gguf(export, path, kind)
    weights = load_file(export / "model.safetensors")
    names = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
             "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    seen = set()
    for tensor in gguf.GGUFReader(path).tensors:
        block, _, last = tensor.name.removesuffix(".weight").rpartition(".")
        theirs = (block.replace("blk", "model.layers") + "." if block else "") + names[last] + ".weight"
        expected = weights[theirs].float()
        if last in ("attn_q", "attn_k"):
            expected = interleaved(expected, {"attn_q": 4, "attn_k": 2}[last])
        found = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).view(expected.shape)
        exact = kind == "bf16" or expected.ndim == 1
        close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 5e-4 if kind == "f16" else 2e-3}
        torch.testing.assert_close(found, expected, **close)
        assert tensor.tensor_type.name == ("F32" if expected.ndim == 1 else kind.upper())
        seen.add(theirs)
    assert seen == set(weights)


def test_biases_of_internlm_are_in_the_same_order(tmp_path, small_tokenizer_folder):
    gguf = pytest.importorskip("gguf")
    base = save_base(tmp_path / "base", "internlm", small_tokenizer_folder)
    merged(describe(find_result(save_run(tmp_path / "out", base))), tmp_path / "merged")
    write_gguf(tmp_path / "merged", tmp_path / "model.gguf", "f16")
    weights = load_file(tmp_path / "merged/model.safetensors")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for theirs, ours in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        bias = weights[f"model.layers.1.self_attn.{ours}.bias"].float()
        assert found[f"blk.1.{theirs}.bias"].equal(interleaved(bias, 4))
    assert found["blk.1.attn_output.bias"].equal(weights["model.layers.1.self_attn.o_proj.bias"].float())


def test_a_gguf_file_has_vocabulary_rope_and_template(export, tmp_path, small_tokenizer):
    gguf = pytest.importorskip("gguf")
    write_gguf(export, tmp_path / "model.gguf", "bf16")
    found = gguf_fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    shape = {"block_count": 2, "context_length": 256, "embedding_length": 64, "feed_forward_length": 96,
             "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16,
             "rope.freq_base": 10000.0, "vocab_size": 600}  # fmt: skip
    assert {key: found[f"llama.{key}"] for key in shape} == shape
    assert found["general.architecture"] == "llama"
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens == [small_tokenizer.convert_ids_to_tokens(number) for number in range(600)]
    assert len(found["tokenizer.ggml.scores"]) == 600
    end = small_tokenizer.convert_tokens_to_ids("<|im_end|>")
    kind = {name: gguf.TokenType(kinds[tokens.index(name)]).name for name in ("<unk>", "<s>", "<|im_end|>", "<0x41>")}
    assert kind == {"<unk>": "UNKNOWN", "<s>": "CONTROL", "<|im_end|>": "CONTROL", "<0x41>": "BYTE"}
    special = {"bos_token_id": 1, "eos_token_id": end, "eot_token_id": end, "padding_token_id": 2,
               "add_space_prefix": False, "add_bos_token": True, "model": "llama"}  # fmt: skip
    assert {key: found[f"tokenizer.ggml.{key}"] for key in special} == special
    assert found["tokenizer.chat_template"] == TEMPLATES["internlm2"].jinja()


def test_a_real_vocabulary_is_that_of_the_model(real_internlm2):
    pytest.importorskip("gguf")
    from sentencepiece import SentencePieceProcessor

    from trainer.export.gguf_file import vocabulary

    path = real_internlm2 / "tokenizer.model"
    found = vocabulary(path, load_tokenizer(str(real_internlm2)), 92544)
    model = SentencePieceProcessor(model_file=str(path))
    assert [found[number][0].decode() for number in (92542, 92543, 2)] == ["<|im_end|>", "<|im_start|>", "</s>"]
    assert all(piece and b"\0" not in piece for piece, _, _ in found)
    assert found[5000] == (model.IdToPiece(5000).encode(), model.GetScore(5000), 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen2"}, "got a model of type qwen2 and no SentencePiece tokenizer.model, allowed: Llama's"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "a rope of type yarn"),
    ],
)
def test_what_cannot_be_a_gguf_file_is_told_before_anything_is_written(config, words, tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(ConfigError, match=words) as told:
        check_exportable(config, tmp_path)
    assert "convert_hf_to_gguf.py" in told.value.hint
