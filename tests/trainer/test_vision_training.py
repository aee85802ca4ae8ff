"""Image chats through the whole trainer: a run as `launch local` starts it, on one rank and on two."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.trainer import warm
from tests.trainer.test_vision_data import checkpoint, rows_of  # noqa: F401  (a fixture)
from trainer.config.job import TrainConfig
from trainer.data.cache import DataCache
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.vision.collate import ImageCollator
from trainer.vision.files import ImageFiles
from trainer.vision.form import find_form

COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Chats that only who sees the image can answer: in the formats of LLaMA-Factory and LLaVA."""
    folder = tmp_path_factory.mktemp("colours")
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    chats = [(["<image>Colour?", f"{colour}."], [f"{colour}.png"]) for colour in COLOURS]
    chats.append((["<image>and<image>Colours?", "red. blue."], ["red.png", "blue.png"]))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(*chats)))
    llava = [{"id": str(number), "image": f"{colour}.png",
              "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": f"{colour}."}]}
             for number, colour in enumerate(COLOURS)]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps(llava))
    return folder


def job(folder, base, images, **changes):
    sections = {
        "settings": {"seed": 7, "output_dir": str(folder / "out"), "device": "cpu"},
        "model": {"path": str(base), "quantization": "none", "dtype": "fp32", "chat_template": "internlm2",
                  "lora": {"r": 8, "alpha": 16, "dropout": 0.0}},
        "data": {"sources": [{"path": str(images / "rows.jsonl")}, {"path": str(images / "llava.json")}],
                 "max_length": 96},
        "optimizer": {"lr": 1.0e-2, "max_steps": 12, "batch_size": 1, "accumulation": 2},
        "runtime": {"log_every": 1, "save_every": 100, "eval_every": 100, "sample_prompts": ["Colour?"],
                    "sampling": {"temperature": 0, "max_new_tokens": 2}},
    }  # fmt: skip
    return warm.changed(sections, changes)


def metrics(folder):
    return [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def test_image_chats_train_in_four_bits_and_the_adapter_is_the_language_models(checkpoint, colours, tmp_path):  # noqa: F811
    apart = {"data__validation": [{"path": str(colours / "llava.json")}], "runtime__eval_every": 6}
    run = warm.start(tmp_path, job(tmp_path, checkpoint, colours, model__quantization="nf4", **apart))
    assert run.codes() == [0], run.text
    assert "layers: those of transformers (its layers are XComposer2DecoderLayer)" in run.text
    found = losses(tmp_path)
    assert found[-1] < found[0] - 0.3
    assert sum("validation_loss" in row for row in metrics(tmp_path)) == 2
    adapter = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert adapter and all(".layers." in name and ".lora_" in name and ".vit." not in name for name in adapter)
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["exclude_modules"]


@pytest.mark.parametrize(("stage", "ranks"), [(2, 2), (3, 2)])
def test_zero_trains_image_chats(checkpoint, colours, tmp_path, stage, ranks):  # noqa: F811
    changes = {
        "optimizer__max_steps": 3,
        "optimizer__accumulation": 2 // ranks,
        "optimizer__deepspeed": {"zero_stage": stage},
    }
    run = warm.start(tmp_path, job(tmp_path, checkpoint, colours, **changes), ranks)
    assert run.codes() == [0] * ranks, run.text
    found = losses(tmp_path)
    assert len(found) == 3 and found[-1] < found[0]


def test_an_image_that_is_gone_after_encoding_is_named(checkpoint, colours, tmp_path):  # noqa: F811
    images = tmp_path / "images"
    images.mkdir()
    for file in colours.iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    config = job(tmp_path, checkpoint, images, data__image_dir=str(images), data__cache_dir=str(tmp_path / "cache"))
    tokenizer = load_tokenizer(str(checkpoint))
    DataCache(tmp_path / "cache", print).samples(TrainConfig.model_validate(config), tokenizer)
    (images / "red.png").unlink()
    run = warm.start(tmp_path, config)
    assert run.codes() == [78], run.text
    assert f"{images / 'red.png'}: no such file" in run.text and "Traceback" not in run.text


def test_packed_and_unpacked_rows_have_the_same_loss(checkpoint, colours, tmp_path):  # noqa: F811
    tokenizer = load_tokenizer(str(checkpoint))
    form, totals = find_form(str(checkpoint), tokenizer), []
    for pack in (False, True):
        config = TrainConfig.model_validate(job(tmp_path, checkpoint, colours, data__pack=pack))
        cache = DataCache(tmp_path / f"cache-{pack}", print)
        rows = cache.rows(cache.samples(config, tokenizer), config)["train"]
        model = load_model(config, torch.device("cpu")).eval()
        collate = ImageCollator(tokenizer.pad_token_id, 96 if pack else None, form, ImageFiles(None))
        total = count = 0
        with torch.no_grad():
            for number in range(len(rows)):
                batch = collate([rows[number]])
                trained = len(batch["loss_at"])
                total += (
                    float(model(**{key: batch[key] for key in batch.keys() - {"rows"}}, use_cache=False).loss) * trained
                )
                count += trained
        totals.append((total / count, count, len(rows)))
    (one, trained, many), (other, same, few) = totals
    assert one == pytest.approx(other, abs=1e-5) and trained == same and few < many


def test_a_resumed_run_trains_on_the_images_it_would_have_had(checkpoint, colours, tmp_path):  # noqa: F811
    changes = {"optimizer__max_steps": 4, "runtime__save_every": 2, "runtime__sample_prompts": []}
    whole, part = tmp_path / "whole", tmp_path / "part"
    run = warm.start(whole, job(whole, checkpoint, colours, **changes))
    assert run.codes() == [0], run.text
    warm.stopped_at(whole, part, 2)
    again = warm.start(part, job(part, checkpoint, colours, **changes))
    assert again.codes() == [0], again.text
    assert "resuming from" in again.text and losses(part) == losses(whole)[2:]


def test_the_signal_that_stops_a_job_ends_no_worker_before_it_has_saved(checkpoint, colours, tmp_path):  # noqa: F811
    """A scheduler sends it to every process of a job, in any order."""
    run = warm.start(tmp_path, job(tmp_path, checkpoint, colours, optimizer__max_steps=5000))
    run.wait_for("^step 3/")
    parent = run.processes[0].pid
    workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert workers
    for worker in map(int, workers):
        os.kill(worker, signal.SIGTERM)
    step = len(losses(tmp_path))
    run.wait_for(f"^step {step + 5}/")
    run.tell()
    assert run.codes() == [75], run.text
    assert "saved" in run.text and not any(Path(f"/proc/{worker}").exists() for worker in workers)
