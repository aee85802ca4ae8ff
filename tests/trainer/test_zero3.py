"""ZeRO-3 with a 4-bit base on two ranks: read in parts, never whole on a rank, and trained as ZeRO-2 trains."""

import json
import math
import socket

import pytest
import safetensors
import torch

from tests.trainer import split_load, warm
from tests.trainer.conftest import QUICKSTART
from trainer.config.job import Shape, TrainConfig
from trainer.models.load import load_model
from trainer.new_model.create import new_model, save_internlm2


def job(folder, base, stage, **model):
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "path": str(base), "quantization": "nf4", "lora": {"r": 4, "dropout": 0.0}, **model},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64},
        "optimizer": {"lr": 1e-2, "max_steps": 4, "batch_size": 1, "accumulation": 2,
                      "deepspeed": {"zero_stage": stage}},
        "runtime": {"log_every": 1, "save_every": 100, "eval_every": 2, "sample_prompts": ["Who?"],
                    "sampling": {"temperature": 0, "max_new_tokens": 2}},
    }  # fmt: skip


def outcome(folder):
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    answers = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows], [(one["step"], one["answer"]) for one in answers]


@pytest.mark.parametrize(
    "model", [{}, {"quantization": "none", "dtype": "bf16"}, {"quantization": "none", "lora": None}]
)
def test_zero3_trains_as_zero2_does(tiny_base, tmp_path, model):
    found = {}
    for stage in (2, 3):
        run = warm.start(tmp_path / str(stage), job(tmp_path / str(stage), tiny_base, stage, **model), 2)
        assert run.codes() == [0, 0], run.text
        assert ("layers: fused" in run.text) == (model.get("lora", True) is not None)
        found[stage] = outcome(tmp_path / str(stage))
    close = 2e-2 if model.get("dtype") == "bf16" else 1e-5
    for one, other in zip(found[3][0], found[2][0], strict=True):
        assert one == pytest.approx(other, rel=close)
    assert len(found[3][0]) == 4
    assert [step for step, _ in found[3][1]] == [0, 2, 4]
    assert found[3][1][0] == found[2][1][0], "before training both have the same model"


def test_no_rank_ever_holds_or_reads_the_whole_model(tmp_path):
    base = tmp_path / "base"
    shape = Shape(hidden_size=64, intermediate_size=128, num_layers=32, num_heads=4, num_kv_heads=2, vocab_size=300)
    model = new_model(shape, 7)
    save_internlm2(dict(model.state_dict()), model.config, base, [2])
    raw = job(tmp_path, base, 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    places = [(tmp_path, raw, rank, port) for rank in (0, 1)]
    ranks = [warm.SERVER.Process(target=split_load.load_and_measure, args=place) for place in places]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(warm.PATIENCE_S)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    whole = load_model(TrainConfig.model_validate(raw), torch.device("cpu"))
    sizes = {name: parameter.nbytes for name, parameter in whole.named_parameters()}
    assert not set(first["read"]) & set(second["read"])
    with safetensors.safe_open(base / "model.safetensors", framework="pt") as stored:
        assert sorted(first["read"] + second["read"]) == sorted(stored.keys())
    full = max(math.prod(getattr(p, "quant_state", p).shape) * 4 for p in whole.parameters())  # one weight in float32
    for rank in (first, second):
        assert sum(rank["parts"].values()) == sum(sizes.values()) / 2
        assert rank["peak"] < sum(sizes.values()) / 2 + rank["scales"] + 3 * full
        assert rank["peak"] < sum(sizes.values()) + rank["scales"], "the model is too small to prove anything"
