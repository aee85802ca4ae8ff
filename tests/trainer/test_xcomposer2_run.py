"""XComposer2 from `launch new-model` through a QLoRA run on images to its merged checkpoint, chats and articles."""

import io
import json
import re
import sys

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer import warm
from tests.trainer.test_families import job as model_job
from tests.trainer.test_vision_training import colours, job  # noqa: F401  (a fixture)
from trainer.cli import main
from trainer.data.templates import TEMPLATES
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.new_model.seeded import write_model

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KEPT = ("vit.", "vision_proj.", ".Plora_", "norm")  # parts of names that no adapter is on
EXACT = ("--dtype", "fp32", "--temperature", "0", "--max-new-tokens", "8")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "base"
    write_model("xcomposer2", "tiny", folder, 3)
    return folder


@pytest.fixture(scope="module")
def output(base, colours, tmp_path_factory):  # noqa: F811
    """What a QLoRA run on images leaves."""
    folder = tmp_path_factory.mktemp("seen")
    config = job(folder, base, colours, model__quantization="nf4", data__max_length=128,
                 runtime__sample_prompts=[], optimizer__max_steps=6, optimizer__accumulation=1,
                 optimizer__deepspeed=None)  # fmt: skip
    run = warm.start(folder, config)
    assert run.codes() == [0], run.text
    return folder / "out"


@pytest.fixture(scope="module")
def merging(output, tmp_path_factory):
    """The merged folder, and what was said."""
    folder, said = tmp_path_factory.mktemp("merged") / "served", io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", said)
        assert main(["merge", str(output), "--to", str(folder)]) == 0
    return folder, said.getvalue()


def inputs(*starts):
    torch.manual_seed(1)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    for start in starts:
        mask[0, start : start + 4] = True
    return {"input_ids": torch.randint(3, 500, (1, 16)), "image_mask": mask,
            "pixel_values": torch.randn(len(starts), 3, 28, 28)}  # fmt: skip


def test_a_new_checkpoint_has_the_makers_names(base):
    with safe_open(base / "model.safetensors", framework="pt") as held:
        shapes = {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
    layer = {name.removeprefix("model.layers.1."): shape for name, shape in shapes.items() if ".layers.1." in name
             and name.startswith("model.")}  # fmt: skip
    inner = {"attention.wqkv": (128, 64), "attention.wo": (64, 64), "feed_forward.w1": (128, 64),
             "feed_forward.w3": (128, 64), "feed_forward.w2": (64, 128)}  # fmt: skip
    expected = {"attention_norm.weight": [64], "ffn_norm.weight": [64]}
    for name, (rows, columns) in inner.items():
        expected |= {f"{name}.weight": [rows, columns], f"{name}.Plora_A.weight": [8, columns],
                     f"{name}.Plora_B.weight": [rows, 8]}  # fmt: skip
    assert layer == expected
    tower = "vit.vision_tower.vision_model."
    assert shapes[tower + "embeddings.position_embedding.weight"] == [5, 32]
    assert {tower + "pre_layrnorm.weight", tower + "post_layernorm.bias", "vision_proj.0.weight", "vision_proj.2.bias",
            "model.tok_embeddings.weight", "output.weight"} <= shapes.keys()  # fmt: skip


def test_a_merged_run_answers_as_base_and_adapter_do(base, output, merging):
    folder, said = merging
    rows = r"drift on 2 rows of the run's data, 2 of them with images \(\d+ tokens, float32 on cpu\)"
    assert re.search(rows, said), said
    adapted = PeftModel.from_pretrained(load_model(model_job(base), CPU), output / "adapter").eval()
    merged = load_model(model_job(folder), CPU).eval()
    with torch.no_grad():
        for starts in ((3,), (1, 9)):
            wanted, found = (model(**inputs(*starts)).logits for model in (adapted, merged))
            assert (found - wanted).abs().mean() < 0.02 * wanted.std()
            with adapted.disable_adapter():  # what it would be without the adapter
                assert (adapted(**inputs(*starts)).logits - wanted).abs().mean() > 0.1 * wanted.std()


def test_a_merged_run_keeps_the_makers_layout(base, merging):
    before, after = load_file(base / "model.safetensors"), load_file(merging[0] / "model.safetensors")
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linears = {name for name in before if name.startswith("model.layers.") and not any(part in name for part in KEPT)}
    assert changed == linears and len(linears) == 2 * 5
    raws = [json.loads((folder / "config.json").read_text()) for folder in (base, merging[0])]
    assert raws[1] == {**raws[0], "torch_dtype": "bfloat16"}


def test_a_merged_run_has_template_stops_and_tokenizer_beside_it(base, merging):
    folder, _ = merging
    ours, theirs = load_tokenizer(str(base)), load_tokenizer(str(folder))
    text = "What is it? 层 <|im_end|>"
    assert (ours.get_vocab(), ours(text).input_ids) == (theirs.get_vocab(), theirs(text).input_ids)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATES["internlm2"].jinja()
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [2, ours.convert_tokens_to_ids("<|im_end|>")]


@pytest.fixture
def chat(capsys):
    def go(model, *arguments):
        code = main(["chat", str(model), *EXACT, *map(str, arguments)])
        return code, *capsys.readouterr()

    return go


def test_a_chat_is_shown_an_image(base, output, merging, colours, chat):  # noqa: F811
    """Of a new model, of a run and of its merged checkpoint; the image is a part of the prompt."""
    question = ("--once", "Colour?", "--image", colours / "red.png", "--stats")
    for model in (base, output, merging[0]):
        code, out, err = chat(model, *question)
        assert code == 0 and out.strip() and "* template: internlm2 (" in err, err
        seen = int(re.search(r"prompt (\d+) tokens", err)[1])
        assert seen - int(re.search(r"prompt (\d+) tokens", chat(model, *question[:2], "--stats")[2])[1]) >= 4


@pytest.mark.parametrize("ending", ["md", "html"])
def test_an_article_with_pictures_is_written(ending, output, colours, tmp_path, chat):  # noqa: F811
    to = tmp_path / f"article.{ending}"
    code, out, err = chat(output, "--compose", "Write about colours.", "--images", colours, "--to", to)
    assert (code, out) == (0, ""), err
    assert f"written: {to}" in err and "* image: " in err
    wanted = r"!\[.*\]\(\S+\.png\)" if ending == "md" else r'<img src="data:image/png;base64,'
    assert re.search(wanted, to.read_text())
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


WHOLE = ("--compose", "x", "--images", "FOLDER", "--to", "a.md")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--compose", "x"), "--compose: got no --images and no --to, allowed: --compose INSTRUCTION --images FOLDER"),
        (("--images", "FOLDER"), "--compose: got no --compose and no --to"),
        (("--to", "a.md", "--compose", "x"), "--compose: got no --images, allowed"),
        ((*WHOLE, "--once", "y"), "--compose: got --once beside it"),
        ((*WHOLE, "--image", "FOLDER/red.png"), "--compose: got --image beside it"),
        (("--compose", "x", "--images", "EMPTY", "--to", "a.md"), "allowed: a folder with images (.jpg"),
        (("--compose", "x", "--images", "FOLDER", "--to", "a.pdf"), "--to: got a.pdf, allowed: a file .md or .html"),
    ],
)
def test_a_mistake_in_an_article_is_told_before_the_model_is_loaded(arguments, words, colours, tmp_path, chat):  # noqa: F811
    given = [one.replace("FOLDER", str(colours)).replace("EMPTY", str(tmp_path)) for one in arguments]
    code, out, err = chat("/nowhere", *given)
    assert (code, out) == (78, "") and words in err and "Traceback" not in err


def test_a_text_model_composes_nothing(colours, tmp_path, chat):  # noqa: F811
    write_model("internlm2", "tiny", tmp_path / "text", 0)
    given = ("--compose", "x", "--images", colours, "--to", tmp_path / "a.md")
    code, _, err = chat(tmp_path / "text", *given)
    assert code == 78 and f"--compose: {tmp_path}/text is a text model (internlm2), allowed: a model that sees" in err


@pytest.mark.parametrize("revision", [COMMIT, None])
def test_the_tokenizer_of_a_name_on_the_hub_is_that_of_the_folder_and_no_code_runs(
    base, revision, tmp_path, monkeypatch
):
    """Its files name a class that only the makers' code has."""
    name = "internlm/internlm-xcomposer2-7b"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{name.replace('/', '--')}"
    folder = cached / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(COMMIT)
    (folder / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
    for file, kind in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        raw = json.loads((base / file).read_text())
        (folder / file).write_text(json.dumps({**raw, "auto_map": {kind: ["odd.Odd", None]}}))
    (folder / "odd.py").write_text("raise SystemExit('the code of a model was run')")
    found, expected = load_tokenizer(name, revision), load_tokenizer(str(base))
    assert found.get_vocab() == expected.get_vocab()
    assert found("Who? <|im_end|> 层").input_ids == expected("Who? <|im_end|> 层").input_ids
