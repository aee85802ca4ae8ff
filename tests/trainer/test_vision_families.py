"""LLaVA and InternVL: transformers' own classes behind the same data path, in tiny random shapes."""

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.trainer import warm
from tests.trainer.test_vision_data import pictures, rows_of  # noqa: F401  (a fixture)
from tests.trainer.test_vision_training import colours, job, losses  # noqa: F401  (a fixture)
from trainer.config.job import TrainConfig
from trainer.data.cache import DataCache
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.models.attention import use_varlen
from trainer.models.load import load_model
from trainer.models.lora import attach_lora
from trainer.models.tokenizer import load_tokenizer
from trainer.vision.collate import ImageCollator
from trainer.vision.files import ImageFiles
from trainer.vision.form import find_form
from trainer.vision.prompt import prompt_inputs
from trainer.vision.splice import place_images

CPU = torch.device("cpu")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llava(tokenizer):
    vision = CLIPVisionConfig(**SIZES, image_size=42, patch_size=14, projection_dim=32)
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, image_seq_length=9)
    )


def internvl(tokenizer):
    vision = InternVLVisionConfig(**SIZES, image_size=[56, 56], patch_size=[14, 14])
    image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=image, image_seq_length=4, tie_word_embeddings=False
    )
    return InternVLForConditionalGeneration(config)


MADE = {"llava": (llava, 9), "internvl": (internvl, 4)}


@pytest.fixture(scope="module", params=sorted(MADE))
def family(request, tmp_path_factory, small_tokenizer_folder):
    """Name and folder of a checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(small_tokenizer_folder)
    names = ("<image>", "<img>", "</img>", "<IMG_CONTEXT>")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    MADE[request.param][0](tokenizer).save_pretrained(folder)
    return request.param, folder


def config_for(folder, **model):
    return TrainConfig.model_validate(
        {
            "model": {"path": str(folder), "quantization": "none", "dtype": "fp32", **model},
            "data": {"sources": [{"path": "x"}]},
        }
    )


def prompt(folder, images, text="What is<image>it?"):
    tokenizer = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"], find_form(str(folder), tokenizer))
    model = load_model(config_for(folder), CPU).eval()
    return model, prompt_inputs(model, encoder, encoder.template.prompt([Message("user", text)]), images)


def test_an_image_is_as_many_tokens_as_the_config_says(family, pictures):  # noqa: F811
    name, folder = family
    model, inputs = prompt(folder, [pictures / "red.png"])
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == MADE[name][1]
    tokenizer = load_tokenizer(str(folder))
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(model.config.image_token_id)
    around = [tokenizer.convert_ids_to_tokens(ids[at]) for at in (first - 1, first + MADE[name][1])]
    assert (around == ["<img>", "</img>"]) == (name == "internvl")
    with torch.no_grad():
        seen, other = (
            model(**{**inputs, "pixel_values": pixels}).logits[0, -1]
            for pixels in (inputs["pixel_values"], -inputs["pixel_values"])
        )
    assert not torch.allclose(seen, other)


def test_generation_with_a_cache_equals_generation_without(family, pictures):  # noqa: F811
    _, folder = family
    model, inputs = prompt(folder, [pictures / "red.png", pictures / "blue.png"], "<image>and<image>?")
    told = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    cached, whole = (model.generate(**inputs, **told, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)


def test_the_text_of_the_image_token_in_a_message_is_ordinary_text(family):
    _, folder = family
    tokenizer = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"], find_form(str(folder), tokenizer))
    segments = place_images(encoder.template.prompt([Message("user", "<IMG_CONTEXT> and <img> are text")]), 0)
    assert not set(encoder.prompt_ids(segments)) & set(tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<img>"]))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_adapter_is_the_language_models(family, quantization):
    _, folder = family
    config = config_for(folder, quantization=quantization, dtype="bf16", lora={"r": 4})
    model = load_model(config, CPU)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "in_features")}
    kind = {"none": "Linear", "nf4": "Linear4bit"}[quantization]
    assert {one for name, one in kinds.items() if "language_model" in name} == {kind}
    assert {one for name, one in kinds.items() if "language_model" not in name} == {"Linear"}
    trained = [name for name, one in attach_lora(model, config.model.lora, "x").named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all("language_model.layers" in name for name in trained)


def test_the_tower_keeps_its_own_attention(family):
    model = load_model(config_for(family[1]), CPU)
    use_varlen(model)
    attentions = [name for name, _ in model.named_modules() if name.endswith(("self_attn", "attention"))]
    kinds = {
        ("vision_tower" in name, model.get_submodule(name).config._attn_implementation)
        for name in attentions
        if hasattr(model.get_submodule(name), "config")
    }
    assert kinds == {(True, "sdpa"), (False, "varlen")}


def loss_sum(model, batch):
    batch.pop("rows")
    return float(model(**batch, use_cache=False).loss) * len(batch["loss_at"])


def test_packed_samples_do_not_see_each_other(family, pictures, make_config, tmp_path):  # noqa: F811
    _, folder = family
    rows = rows_of((["<image>What?", "Red."], ["red.png"]), (["More<image>?", "Blue it is."], ["blue.png"]))
    tokenizer, totals = load_tokenizer(str(folder)), []
    form = find_form(str(folder), tokenizer)
    model = load_model(config_for(folder), CPU).eval()
    for pack in (False, True):
        config = make_config(rows, path=folder, image_dir=str(pictures), pack=pack, max_length=128)
        cache = DataCache(tmp_path / f"cache-{pack}", print)
        found = cache.rows(cache.samples(config, tokenizer), config)["train"]
        collate = ImageCollator(tokenizer.pad_token_id, None, form, ImageFiles(str(pictures)))
        batches = [collate([found[number]]) for number in range(len(found))]
        with torch.no_grad():
            totals.append(sum(loss_sum(model, batch) for batch in batches))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_image_chats_train(family, colours, tmp_path):  # noqa: F811
    _, folder = family
    run = warm.start(tmp_path, job(tmp_path, folder, colours, optimizer__max_steps=4, data__max_length=160))
    assert run.codes() == [0], run.text
    found = losses(tmp_path)
    assert found[-1] < found[0]


def test_the_middle_of_an_image_is_cut_as_the_processor_says(family, tmp_path):
    name, folder = family
    assert find_form(str(folder), load_tokenizer(str(folder))).crop == (name == "llava")
