"""launch new-model: every family's tiny model is whole, loads here, and comes from its seed alone."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launcher.cli import main as launch
from tests.trainer.conftest import SHARED, load_tokenizer
from tests.trainer.test_families import CPU, job
from trainer.cli import main
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.families.registry import CARDS
from trainer.models.load import load_model
from trainer.new_model.seeded import seeded, write_model, write_weights
from trainer.new_model.sizes import find_size, template_of
from trainer.sizing.shapes import HUB_SHAPES

# the published parameter counts (a tied head counts once)
COUNTS = {("internlm2", "1_8b"): 1_889_110_016, ("internlm2", "7b"): 7_737_708_544, ("internlm", "7b"): 7_321_948_160,
          ("internlm", "20b"): 20_088_714_240, ("internlm3", "8b"): 8_804_241_408, ("gemma", "2b"): 2_506_172_416,
          ("gemma2", "2b"): 2_614_341_888, ("gemma3_text", "1b"): 999_885_952,
          ("phi3", "3_8b"): 3_821_079_552}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Family -> the folder of its tiny model, each made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("tiny") / family
            write_model(family, "tiny", made[family], 3)
        return made[family]

    return make


@pytest.mark.parametrize("family", CARDS)
def test_a_tiny_model_of_each_family_loads_and_answers_its_template(tiny, family):
    folder = tiny(family)
    tokenizer, model = load_tokenizer(str(folder)), load_model(job(folder), CPU).eval()
    template = TEMPLATES[template_of(CARDS[family])]
    encoder = Encoder(tokenizer, template)
    encoded = encoder.encode([template.render([Message("user", "Hi 你好"), Message("assistant", "def f")])])[0]
    assert max(encoded.ids) < model.config.vocab_size
    ids = torch.tensor([[int(one) for one in encoded.ids]])
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).logits).all()
    stops = set(model.generation_config.eos_token_id)
    assert {tokenizer.convert_tokens_to_ids(stop) for stop in template.stop if stop in tokenizer.get_vocab()} <= stops
    assert (folder / "chat_template.jinja").read_text() == template.jinja()


def test_every_family_that_is_loaded_here_can_be_made():
    assert all(card.new and "tiny" in card.new.sizes for card in CARDS.values())


@pytest.mark.parametrize(("family", "size"), COUNTS)
def test_sizes_have_the_published_numbers_of_parameters(family, size):
    from trainer.new_model.seeded import _shapes

    card, raw = find_size(family, size)
    assert sum(shape.numel() for shape in _shapes(card, raw).values()) == COUNTS[family, size]


@pytest.mark.parametrize("size", ["7b", "vl_7b"])
def test_xcomposer2_has_the_parameters_that_are_loaded_and_an_unused_norm(size):
    from trainer.new_model.seeded import _shapes

    card, raw = find_size("xcomposer2", size)
    shapes = _shapes(card, raw)
    unused = [shapes[name].numel() for name in shapes if "post_layernorm" in name]
    known = HUB_SHAPES[f"internlm/internlm-xcomposer2-{size.replace('_', '-')}"]
    assert sum(shape.numel() for shape in shapes.values()) == known.parameters + sum(unused)
    assert unused == [1024, 1024]


def test_norms_begin_as_they_do_in_training():
    shape = torch.Size([2])
    assert seeded(3, "x.pre_layrnorm.weight", shape).tolist() == [1, 1]
    assert seeded(3, "x.layer_norm1.bias", shape).tolist() == [0, 0]


def test_internlm2_is_written_in_its_own_layout(tiny):
    with safe_open(tiny("internlm2") / "model.safetensors", framework="pt") as held:
        names = set(held.keys())
    assert {"model.tok_embeddings.weight", "output.weight", "model.layers.0.attention.wqkv.weight",
            "model.layers.1.feed_forward.w3.weight", "model.layers.1.ffn_norm.weight"} <= names  # fmt: skip
    assert not [name for name in names if "q_proj" in name]


def test_the_seed_alone_makes_the_weights(tiny, tmp_path):
    write_model("internlm2", "tiny", tmp_path / "again", 3)
    write_model("internlm2", "tiny", tmp_path / "other", 4)
    first, again, other = (load_file(folder / "model.safetensors")
                           for folder in (tiny("internlm2"), tmp_path / "again", tmp_path / "other"))  # fmt: skip
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not [name for name in first if torch.equal(first[name], other[name]) and "norm" not in name]
    weight = first["output.weight"].float()
    assert weight.std() == pytest.approx(0.02, rel=0.05) and abs(weight.mean()) < 1e-3
    assert torch.equal(first["model.norm.weight"], torch.ones(64, dtype=torch.bfloat16))
    assert (seeded(3, "norm.weight", torch.Size([2]), zero_norms=True) == 0).all()


def test_shards_hold_what_one_file_does_and_have_an_index(tiny, tmp_path):
    card, raw = find_size("internlm2", "tiny")
    write_weights(card, raw, tmp_path, 3, shard=2**16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    whole = load_file(tiny("internlm2") / "model.safetensors")
    assert index.keys() == whole.keys() and len(set(index.values())) > 2
    for name, file in index.items():
        assert torch.equal(load_file(tmp_path / file)[name], whole[name])


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="which is there, allowed: a new folder, or an empty one"):
        write_model("llama", "tiny", tmp_path / "out", 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_nothing_is_left_of_a_model_that_could_not_be_made(tmp_path):
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ConfigError, match=r"--tokenizer: got .*tokens, allowed: a folder with one of tokenizer.json"):
        write_model("llama", "tiny", tmp_path / "out", 0, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    real = SHARED / "tokenizers" / "internlm2" / "tokenizer.model"
    if not real.exists():
        pytest.skip(f"no real tokenizer: {real} is absent")
    with pytest.raises(ConfigError, match=r"a tokenizer of 92544 tokens, .* a model of 512 embeddings"):
        write_model("internlm2", "tiny", tmp_path / "out", 0, real)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "size", "message"), [
    ("internlm4", "tiny", "--family: got internlm4, allowed: internlm, internlm2, "),
    ("internlm2", "8b", "--size: got 8b, allowed for internlm2: tiny, 1_8b, 7b, 20b"),
])  # fmt: skip
def test_unknown_families_and_sizes_list_the_known_ones(tmp_path, capsys, family, size, message):
    assert main(["new-model", "--family", family, "--size", size, "--out", str(tmp_path / "out")]) == 78
    assert message in capsys.readouterr().err


def test_the_launcher_makes_one_too(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        launch(["new-model", "--family", "qwen3", "--size", "tiny", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert capfd.readouterr().out == f"written: {tmp_path / 'out'} (qwen3 tiny, 106,880 parameters)\n"
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_sizes_are_those_of_the_hub():
    _, raw = find_size("internlm2", "7b")
    shape = HUB_SHAPES["internlm/internlm2-chat-7b"]
    assert (raw["hidden_size"], raw["num_key_value_heads"]) == (shape.hidden, shape.kv_heads)
