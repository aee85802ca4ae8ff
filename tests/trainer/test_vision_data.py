"""Images from a row to the batch: files found and checked, placed among the tokens, packed, cut, made into pixels."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from tests.trainer.conftest import SHARED, load_tokenizer
from tests.trainer.seeing import IMAGE_SIZE, write_xcomposer2
from trainer.config.job import TrainConfig
from trainer.data.cache import DataCache
from trainer.data.encode import Encoded, Encoder
from trainer.data.encode import ImageSpan as Images
from trainer.data.message import Message, RowError
from trainer.data.report import Report
from trainer.data.segment import render_text
from trainer.data.store import ids_of, labels_of
from trainer.data.templates import TEMPLATES
from trainer.data.truncation import fit
from trainer.errors import ConfigError
from trainer.vision.collate import ImageCollator
from trainer.vision.files import ImageFiles
from trainer.vision.form import CLIP, find_form
from trainer.vision.image_form import ImageForm, ImageTokens
from trainer.vision.pixels import ImageFileError, read_image, to_pixels
from trainer.vision.splice import place_images

TOKENS = (IMAGE_SIZE // 14) ** 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_tokenizer_folder):
    """A tiny XComposer2 with the small tokenizer, as a user would have it."""
    folder = tmp_path_factory.mktemp("xcomposer2-vision")
    shutil.copytree(small_tokenizer_folder, folder, dirs_exist_ok=True)
    write_xcomposer2(folder, len(load_tokenizer(str(small_tokenizer_folder))))
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("red.png", "red"), ("blue.png", "blue"), ("green.jpg", "green")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    return folder


def rows_of(*chats):
    """Each chat: what the user and the model say in turn, then the images."""
    roles = ("user", "assistant") * 9
    turns = [[{"role": role, "content": text} for role, text in zip(roles, said, strict=False)] for said, _ in chats]
    return [{"messages": said, "images": images} for said, (_, images) in zip(turns, chats, strict=True)]


def encoded(config, folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    cache = DataCache(tmp_path / "cache", print)
    samples = cache.samples(config, tokenizer)
    return samples, cache.rows(samples, config)["train"], tokenizer


# places


def test_an_image_stands_where_its_mark_was_and_is_never_trained(checkpoint, pictures, make_config, tmp_path):
    rows = rows_of((["<image>What is it?", "Red.", "And<image>here?", "Blue."], ["red.png", "blue.png"]))
    config = make_config(rows, path=checkpoint, image_dir=str(pictures), pack=False)
    samples, train, tokenizer = encoded(config, checkpoint, tmp_path)
    ids, labels = ids_of(samples[0]).tolist(), labels_of(samples[0]).tolist()
    (first, red), (second, blue) = samples.images(0)
    assert (red, blue) == ("red.png", "blue.png")
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert tokenizer.decode(ids[:first]) == "<s><|im_start|>user\n"
    assert ids[first : first + TOKENS] == [unknown] * TOKENS == ids[second : second + TOKENS]
    assert ids.count(unknown) == 2 * TOKENS
    assert tokenizer.decode(ids[first + TOKENS : second]).startswith("What is it?<|im_end|>")
    assert all(label == -100 for start in (first, second) for label in labels[start : start + TOKENS])
    assert tokenizer.decode([label for label in labels if label != -100]) == "Red.<|im_end|>Blue.<|im_end|>"
    batch = ImageCollator(2, None, find_form(str(checkpoint), tokenizer), ImageFiles(str(pictures)))([train[0]])
    assert batch["image_mask"][0].nonzero().squeeze(1).tolist() == [
        *range(first, first + TOKENS),
        *range(second, second + TOKENS),
    ]
    red, blue = (
        to_pixels(read_image(pictures / name), find_form(str(checkpoint), tokenizer))
        for name in ("red.png", "blue.png")
    )
    assert torch.equal(batch["pixel_values"], torch.tensor(np.stack([red, blue])))


@pytest.mark.parametrize(("said", "text"), [
    ("<ImageHere>look", "<s><|im_start|>user\n|look"),
    ("look <image>", "<s><|im_start|>user\nlook |<|im_end|>"),
    ("look", "|<s><|im_start|>user\nlook"),
])  # fmt: skip
def test_marks_of_both_kinds_and_one_image_without_any(small_tokenizer, said, text):
    template = TEMPLATES["internlm2"]
    segments = place_images(template.render([Message("user", said), Message("assistant", "ok")]), 1)
    encoded = Encoder(small_tokenizer, template, ImageForm(28, ImageTokens(0, 3), *CLIP)).encode([segments])[0]
    start, end, _ = encoded.images[0]
    assert encoded.ids[start:end] == [0, 0, 0]
    shown = small_tokenizer.decode(encoded.ids[:start]) + "|" + small_tokenizer.decode(encoded.ids[end:])
    assert shown.startswith(text)
    assert small_tokenizer.decode([label for label in encoded.labels if label != -100]) == "ok<|im_end|>"


def test_what_stands_around_an_image_is_written_too(small_tokenizer):
    template = TEMPLATES["internlm2"]
    segments = place_images(template.render([Message("user", "a<image>b"), Message("assistant", "ok")]), 1)
    encoded = Encoder(small_tokenizer, template, ImageForm(28, ImageTokens(9, 2, (7,), (8,)), *CLIP)).encode(
        [segments]
    )[0]
    start, end, _ = encoded.images[0]
    assert encoded.ids[start - 1 : end + 1] == [7, 9, 9, 8]


def test_text_alone_is_left_as_it_was(small_tokenizer):
    template = TEMPLATES["internlm2"]
    segments = template.render([Message("user", "a <image> is text"), Message("assistant", "ok")])
    assert place_images(segments, 0) == segments
    assert "<image>" in render_text(segments)


def test_marks_and_images_that_do_not_agree_are_refused():
    with pytest.raises(RowError, match="images: got 2 images, expected 1"):
        place_images(TEMPLATES["internlm2"].render([Message("user", "<image>")]), 2)


# length and packing

SAMPLE = Encoded(
    "", list(range(20)), [(2, 4), (10, 12), (18, 20)], [4, 12, 20], images=(Images(5, 9, 0), Images(13, 17, 1))
)


@pytest.mark.parametrize(("limit", "policy", "length", "images"), [
    (20, "keep_turns", 20, 2), (19, "keep_turns", 12, 1), (8, "keep_turns", 4, 0), (15, "truncate", 13, 1),
    (17, "truncate", 17, 2), (7, "truncate", 5, 0),
])  # fmt: skip
def test_an_image_is_never_cut(limit, policy, length, images):
    ((kept,), _) = fit(SAMPLE, limit, policy, document=False)
    assert len(kept.ids) == length and kept.images == SAMPLE.images[:images]


def test_a_document_is_split_around_its_images():
    document = Encoded(
        "", list(range(30)), [(1, 8), (12, 20), (24, 30)], [], images=(Images(8, 12, 0), Images(20, 24, 1))
    )
    pieces, done = fit(document, 10, "drop", document=True)
    assert done == "split" and [len(piece.ids) for piece in pieces] == [8, 10, 10, 2]
    assert [piece.images for piece in pieces] == [(), (Images(0, 4, 0),), (Images(2, 6, 1),), ()]
    assert [piece.spans for piece in pieces] == [[(1, 8)], [(4, 10)], [(1, 2), (6, 10)], [(1, 2)]]
    assert [number for piece in pieces for number in piece.ids] == document.ids
    pieces, _ = fit(document, 3, "drop", document=True)  # no room for an image: it is left out, as a chat would be
    assert not any(piece.images for piece in pieces)
    kept = [number for piece in pieces for number in piece.ids]
    assert kept == [*range(8), *range(12, 20), *range(24, 30)]


def test_packed_rows_keep_every_image_at_its_place(checkpoint, pictures, make_config, tmp_path):
    names = ["red.png", "blue.png", "green.jpg"]
    chats = [([f"{'word ' * number}<image>", "ok"], [names[number % 3]]) for number in range(9)]
    chats[4] = (["no image", "ok"], [])
    config = make_config(rows_of(*chats), path=checkpoint, image_dir=str(pictures), pack=True, max_length=96)
    samples, train, tokenizer = encoded(config, checkpoint, tmp_path)
    assert len(train) < len(samples) == 9
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    found = []
    for number in range(len(train)):
        row = train[number]
        ids = ids_of(np.concatenate(row.samples)).tolist()
        assert ids.count(unknown) == TOKENS * len(row.images)
        assert all(ids[start : start + TOKENS] == [unknown] * TOKENS for start, _ in row.images)
        found += [name for _, name in row.images]
    assert sorted(found) == sorted(name for _, images in chats for name in images)


def test_an_encoded_set_has_names_and_no_pixels(checkpoint, pictures, make_config, tmp_path):
    config = make_config(rows_of((["<image>", "ok"], ["red.png"])), path=checkpoint, image_dir=str(pictures))
    samples, _, _ = encoded(config, checkpoint, tmp_path)
    assert samples.about["images"] == ["red.png"]
    assert sum(file.stat().st_size for file in samples.folder.iterdir()) < 4000


def test_another_size_of_images_is_another_encoded_set(checkpoint, pictures, make_config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**raw, "img_size": 42}))
    rows = rows_of((["<image>", "ok"], ["red.png"]))
    lengths = []
    for folder in (checkpoint, other):
        config = make_config(rows, path=folder, image_dir=str(pictures), pack=False)
        lengths.append(int(encoded(config, folder, tmp_path)[0].lengths[0]))
    assert lengths[1] - lengths[0] == 9 - TOKENS


# files


def test_images_that_cannot_be_used_are_told_by_row_and_path(checkpoint, pictures, make_config, tmp_path):
    (pictures / "torn.jpg").write_bytes((pictures / "green.jpg").read_bytes()[:300])
    (pictures / "text.png").write_text("not an image")
    wrong = ["gone.png", "torn.jpg", "text.png", "https://example.org/1.png"]
    rows = rows_of(*[(["<image>", "ok"], [name]) for name in [*wrong, "red.png"]])
    config = make_config(rows, path=checkpoint, image_dir=str(pictures))
    with pytest.raises(ConfigError) as caught:
        encoded(config, checkpoint, tmp_path)
    lines = caught.value.message.splitlines()
    assert len(lines) == 4
    for number, (name, why) in enumerate(
        zip(wrong, ["no such file", "not an image", "not an image", "an address"], strict=True)
    ):
        assert f"rows.jsonl:{number + 1}: images[0]: got {name!r}, {why}" in lines[number]
        assert "expected an image file (data.image_dir)" in lines[number]
    assert str(pictures / "gone.png") in lines[0]
    config = make_config(rows, path=checkpoint, image_dir=str(pictures), bad_rows="skip")
    samples, _, _ = encoded(config, checkpoint, tmp_path)
    assert len(samples) == 1
    rejected = [json.loads(line) for line in (samples.folder / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [1, 2, 3, 4]


def test_a_model_that_reads_text_alone_says_that_it_sees_no_images(
    small_tokenizer_folder, pictures, make_config, tmp_path
):
    config = make_config(rows_of((["<image>Hi", "ok"], ["red.png"])), path=small_tokenizer_folder)
    samples, _, tokenizer = encoded(config, small_tokenizer_folder, tmp_path)
    assert "<image>Hi" in tokenizer.decode(ids_of(samples[0]).tolist()) and not samples.images(0)
    told = "data: 1 conversations have images, which this model does not see; their marks stay text"
    assert told in Report.load(samples.about["report"]).lines()


def test_without_image_dir_a_path_starts_at_the_rows_file(tmp_path):
    assert ImageFiles(None).find("a/b.png", str(tmp_path / "rows.jsonl")) == str(tmp_path / "a/b.png")


def test_leading_folders_that_image_dir_does_not_have_are_left_out(pictures):
    (pictures / "there").mkdir()
    files = ImageFiles(str(pictures))
    assert files.find("data/set/red.png", "x") == "red.png"
    assert files.find("there/red.png", "x") == "there/red.png"
    with pytest.raises(ValueError, match=r"the same file in data\.image_dir as data/set/red\.png"):
        files.find("other/red.png", "x")


# pixels


def test_pixels_are_those_of_the_whole_image_scaled(pictures):
    form = ImageForm(28, ImageTokens(0, 4), *CLIP)
    found = to_pixels(read_image(pictures / "red.png"), form)
    assert found.shape == (3, 28, 28) and found.dtype == np.float32
    expected = [(value - mean) / std for value, mean, std in zip((1, 0, 0), *CLIP, strict=True)]
    np.testing.assert_allclose(found.mean((1, 2)), expected, rtol=1e-5)


def test_an_image_is_turned_as_its_exif_data_says(tmp_path):
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))  # its left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    assert found.size == (10, 20) and found.getpixel((5, 2)) == (255, 255, 255) and found.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize(("mode", "colour", "seen"), [
    ("L", 128, (128, 128, 128)), ("RGBA", (0, 0, 255, 0), (255, 255, 255)), ("P", 0, (0, 0, 0)),
    ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
])  # fmt: skip
def test_every_kind_of_image_becomes_rgb(mode, colour, seen, tmp_path):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.new(mode, (8, 8), colour).save(path)
    found = read_image(path)
    assert found.mode == "RGB" and found.getpixel((4, 4)) == seen


def test_the_middle_of_an_image_is_taken_where_the_model_wants_it(tmp_path):
    image = Image.new("RGB", (60, 20), "white")
    image.paste("black", (20, 0, 40, 20))
    form = ImageForm(28, ImageTokens(0, 4), (0.0,) * 3, (1.0,) * 3)
    assert to_pixels(image, form).max() == 1
    assert to_pixels(image, ImageForm(28, ImageTokens(0, 4), (0.0,) * 3, (1.0,) * 3, crop=True))[:, :, 4:-4].max() == 0


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageFileError, match="more pixels than 1000"):
        read_image(tmp_path / "large.png")


# real rows


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real data: {SHARED} is absent")
def test_the_real_image_chats_are_read_whole(checkpoint, tmp_path):
    config = TrainConfig.model_validate({
        "model": {"path": str(checkpoint), "chat_template": "internlm2"},
        "data": {"sources": [{"path": str(SHARED / "sft/mllm_demo.json")}], "image_dir": str(SHARED / "images"),
                 "max_length": 1024},
    })  # fmt: skip
    samples, train, _ = encoded(config, checkpoint, tmp_path)
    assert len(samples) == 6
    assert [[name for _, name in samples.images(index)] for index in range(6)] == [
        ["1.jpg", "1.jpg"],
        ["2.jpg"],
        ["3.jpg"],
    ] * 2
    assert sum(len(train[number].images) for number in range(len(train))) == 8


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real data: {SHARED} is absent")
@pytest.mark.parametrize("model_type", ["internlmxcomposer2", "internlm2"])
def test_the_real_tokenizer_writes_the_makers_prompt(model_type, tmp_path):
    """Beside files that name the makers' classes; SentencePiece itself gives the ids of the text around an image."""
    shutil.copy(SHARED / "tokenizers/internlm2/tokenizer.model", tmp_path)
    code = {
        "AutoConfig": "configuration_x.InternLMXcomposer2Config",
        "AutoModel": "modeling_x.InternLMXComposer2ForCausalLM",
    }
    raw = {
        "model_type": model_type,
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "auto_map": code,
        "img_size": 490,
    }
    (tmp_path / "config.json").write_text(json.dumps({**raw, "vocab_size": 92544}))
    named = {"auto_map": {"AutoTokenizer": ["tokenization_x.InternLMXComposer2Tokenizer", None]},
             "tokenizer_class": "InternLMXComposer2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(str(tmp_path))
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"], find_form(str(tmp_path), tokenizer))
    segments = place_images(encoder.template.prompt([Message("user", "<ImageHere>Describe it.")]), 1)
    (encoded,) = encoder.encode([segments])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    before = pieces.encode("[UNUSED_TOKEN_146]user\n")
    after = pieces.encode("Describe it.[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n")
    assert encoded.ids == [1, *before, *[0] * 1225, *after]
