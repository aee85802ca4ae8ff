"""An article with pictures from a folder: by a scripted model, whose answers a person could have given, and by a real
tiny one."""

import base64
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from tests.trainer.test_vision_data import checkpoint  # noqa: F401  (a fixture)
from trainer.chat.compose import check_target, compose, find_pictures
from trainer.config.job import TrainConfig
from trainer.data.encode import Encoder
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError, TrainError
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.vision.form import find_form
from trainer.vision.prompt import prompt_inputs

ARTICLE = """# Beaches & <mountains>

The sea is *blue* here.

```
a fence

with a gap
```

The hills are green. ![x](https://example.org/spy.png) <script>alert(1)</script>"""


class Script:
    """Answers by the kind of the question; what was asked is kept."""

    def __init__(self, places="2: The sea\n4: The hills", choices=("2", "1")):
        self.places, self.choices, self.asked = places, list(choices), []

    def __call__(self, messages, images):
        text = messages[-1].content
        self.asked.append((text, list(images)))
        assert text.count("<image>") == len(images)
        if images:
            return f"A {images[0].stem} picture."
        if text.startswith("This is an article"):
            return self.places
        return self.choices.pop(0) if text.startswith("Which of") else ARTICLE


def composed(ask, instruction, folder, to, tell=print):
    """As `launch chat --compose` does it."""
    pictures = find_pictures(folder, tell)
    check_target(to)
    return compose(ask, instruction, pictures, to, tell)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "my [own] pictures"
    folder.mkdir()
    for name in ("green", "blue", "red one"):
        Image.new("RGB", (30, 20), name.split()[0]).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_text("no image")
    return folder


def test_markdown_has_the_article_and_links_to_the_chosen_pictures(pictures, tmp_path):
    told, script = [], Script()
    home = tmp_path / "out"
    home.mkdir()
    composed(script, "Write of <image> travel", pictures, home / "article.md", told.append)
    text = (home / "article.md").read_text()
    assert [block for block in text.strip().split("\n\n") if block.startswith("!")] == [
        "![The sea](../my%20%5Bown%5D%20pictures/green.png)",
        "![The hills](../my%20%5Bown%5D%20pictures/blue.png)",
    ]
    for link in re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE):
        assert (home / unquote(link)).resolve().parent == pictures
    assert (
        text.index("The sea is") < text.index("green.png") < text.index("a fence\n\nwith") < text.index("The hills are")
    )
    assert any("left out: broken.jpg" in line for line in told)
    assert sorted(path.name for path in home.iterdir()) == ["article.md"]  # nothing half-written beside it


def test_every_picture_is_looked_at_once_and_none_is_taken_twice(pictures, tmp_path):
    script = Script(choices=("2", "2"))
    article = composed(script, "Travel", pictures, tmp_path / "a.md")
    seen = [images[0].name for _, images in script.asked if images]
    assert sorted(seen) == ["blue.png", "green.png", "red one.png"]
    assert [path.name for path, _ in article.pictures.values()] == ["green.png", "red one.png"]
    first = next(text for text, _ in script.asked if text.startswith("Which of"))
    assert "'The sea'" in first and "1. A blue picture.\n2. A green picture.\n3. A red one picture." in first


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.images = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.images += [dict(attrs)] if tag == "img" else []


def test_html_is_one_file_whose_text_is_escaped(pictures, tmp_path):
    composed(Script('2: A <b>"sea"</b>', ["1"]), "Beaches <& hills>", pictures, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    page = Page()
    page.feed(text)
    assert "<title>Beaches &lt;&amp; hills&gt;</title>" in text and "<h1>Beaches &amp; &lt;mountains&gt;</h1>" in text
    assert "<em>blue</em>" in text and "script" not in page.tags and "b" not in page.tags
    (image,) = page.images  # the model's own image address is no image
    assert image["alt"] == 'A <b>"sea"</b>'
    kind, _, data = image["src"].partition(";base64,")
    assert kind == "data:image/png" and base64.b64decode(data) == (pictures / "blue.png").read_bytes()


def test_answers_that_name_nothing_lead_to_even_places_and_the_likest_description(pictures, tmp_path):
    told, script = [], Script("I cannot say.", ["no idea"] * 3)
    article = composed(script, "Travel", pictures, tmp_path / "a.md", told.append)
    assert len(article.pictures) == 3 and any("spread evenly" in line for line in told)
    script = Script("3: the red one, of course", ["which?"])
    article = composed(script, "Travel", pictures, tmp_path / "a.md", told.append)
    assert article.pictures == {2: (pictures / "red one.png", "the red one, of course")}


def test_what_cannot_work_is_told_before_the_model_is_asked(pictures, tmp_path):
    script, empty = Script(), tmp_path / "empty"
    empty.mkdir()
    for folder, to, said in (
        (empty, "a.md", "allowed: a folder with images"),
        (pictures, "a.pdf", "allowed: a file .md or .html"),
        (pictures, "none/a.md", "allowed: a file in a folder that exists"),
    ):
        with pytest.raises(ConfigError, match=said):
            composed(script, "Travel", folder, tmp_path / to)
    assert not script.asked
    with pytest.raises(TrainError, match="the model wrote nothing"):
        composed(lambda messages, images: " \n", "Travel", pictures, tmp_path / "a.md")
    assert not (tmp_path / "a.md").exists()


def test_a_real_model_sees_the_pictures_and_writes_a_file(checkpoint, pictures, tmp_path):  # noqa: F811
    tokenizer = load_tokenizer(str(checkpoint))
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"], find_form(str(checkpoint), tokenizer))
    model = {"path": str(checkpoint), "quantization": "none", "dtype": "fp32"}
    config = TrainConfig.model_validate({"model": model, "data": {"sources": [{"path": "x"}]}})
    model = load_model(config, torch.device("cpu")).eval()

    def ask(messages, images):
        inputs = prompt_inputs(model, encoder, encoder.template.prompt(messages), images)
        out = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=2)
        return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) or "?"

    article = composed(ask, "Travel", pictures, tmp_path / "a.html")
    assert article.pictures and "data:image/png;base64" in (tmp_path / "a.html").read_text()
    shutil.rmtree(pictures)
    with pytest.raises(ConfigError, match="no such file"):
        prompt_inputs(model, encoder, encoder.template.prompt([]), [pictures / "red one.png"])
