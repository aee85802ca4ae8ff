"""With DeepSpeed, a run that is stopped and goes on ends with the same adapter, bit for bit; up to ZeRO-2 it may go on
with another number of ranks. Real training on the CPU."""

import json
from functools import cache

import pytest
from safetensors.torch import load_file

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from trainer.parallel.host_ops import extensions_folder

STEPS, STOP = 5, 2


def job(folder, base, stage, ranks, *, deepspeed=None, **lora):
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, "path": str(base), "quantization": "none",
                  "lora": {"r": 5, "dropout": 0.3, **lora}},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64},
        "optimizer": {"lr": 1e-2, "max_steps": STEPS, "batch_size": 4 // ranks, "accumulation": 2,
                      "deepspeed": {"zero_stage": stage, **(deepspeed or {})}},
        "runtime": {"log_every": 1, "save_every": STOP, "keep": 9, "sample_prompts": []},
    }  # fmt: skip


def trained(folder, config, ranks, kept="adapter/adapter_model"):
    """Losses and gradient norms of all steps, and the tensors that the run has left."""
    run = warm.start(folder, config, ranks)
    assert run.codes() == [0] * ranks, run.text
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: (row["loss"], row["grad_norm"], row["lr"]) for row in rows}
    return measured, load_file(folder / f"out/{kept}.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tiny_base, tmp_path_factory):
    """The folder of a run with a stage and a number of ranks, and what it was like; each is trained once."""

    @cache
    def run(stage, ranks):
        folder = tmp_path_factory.mktemp(f"zero{stage}-{ranks}")
        return folder, *trained(folder, job(folder, tiny_base, stage, ranks), ranks)

    return run


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(uninterrupted, tiny_base, tmp_path, stage, ranks):
    part = tmp_path / "part"
    whole, measured, adapter = uninterrupted(stage, ranks)
    again, other = trained(warm.stopped_at(whole, part, STOP), job(part, tiny_base, stage, ranks), ranks)
    assert again == {step: found for step, found in measured.items() if step > STOP}
    assert list(adapter) == list(other)
    assert all(adapter[name].equal(other[name]) for name in adapter)
    assert list((whole / f"out/checkpoint-{STOP}").glob("global_step*")) == [] or stage == 3


@pytest.mark.parametrize("stage", [0, 2])
def test_float32_copies_of_bf16_weights_come_back(tiny_base, tmp_path, stage):
    whole, part = tmp_path / "whole", tmp_path / "part"
    config = job(whole, tiny_base, stage, 1)
    config["model"]["dtype"] = "bf16"
    measured, adapter = trained(whole, config, 1)
    config["settings"]["output_dir"] = str(part / "out")
    again, other = trained(warm.stopped_at(whole, part, STOP), config, 1)
    assert again == {step: found for step, found in measured.items() if step > STOP}
    assert all(adapter[name].equal(other[name]) for name in adapter)


def test_states_on_the_host_come_back(tiny_base, tmp_path):
    """DeepSpeed's CPU Adam does not give the same bits: it keeps running powers of the betas. What a process that was
    killed while it compiled has left stops nobody."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    measured, _ = trained(whole, job(whole, tiny_base, 2, 1, deepspeed={"offload": "cpu"}), 1)
    compiled = list(extensions_folder().rglob("cpu_adam"))
    assert compiled
    locks = [folder / "lock" for folder in compiled]
    try:
        for lock in locks:
            lock.touch()
        warm.stopped_at(whole, part, STOP)
        again, _ = trained(part, job(part, tiny_base, 2, 1, deepspeed={"offload": "cpu"}), 1)
    finally:
        for lock in locks:
            lock.unlink(missing_ok=True)
    assert sorted(again) == list(range(STOP + 1, STEPS + 1))
    for step, found in again.items():
        assert found == pytest.approx(measured[step], rel=1e-5)


@pytest.mark.parametrize(("stage", "ranks", "other_ranks"), [(0, 1, 2), (1, 2, 1), (2, 2, 1), (2, 1, 2)])
def test_another_number_of_ranks_goes_on_as_the_first_would_have(tiny_base, tmp_path, stage, ranks, other_ranks):
    whole, part = tmp_path / "whole", tmp_path / "part"
    measured, adapter = trained(whole, job(whole, tiny_base, stage, ranks, dropout=0.0), ranks)
    config = job(part, tiny_base, stage, other_ranks, dropout=0.0)
    again, other = trained(warm.stopped_at(whole, part, STOP), config, other_ranks)
    assert sorted(again) == list(range(STOP + 1, STEPS + 1))
    for step, found in again.items():
        assert found == pytest.approx(measured[step], rel=1e-5)
    for name, weight in adapter.items():
        assert (other[name] - weight).norm() <= 1e-4 * weight.norm()


def test_zero3_refuses_another_number_of_ranks(uninterrupted, tiny_base, tmp_path):
    whole, part = uninterrupted(3, 1)[0], tmp_path / "part"
    run = warm.start(warm.stopped_at(whole, part, STOP), job(part, tiny_base, 3, 2), 2)
    assert run.codes() == [78, 78], run.text
    assert "resources: got 2 processes, but" in run.text and "was written by 1" in run.text


def test_a_json_of_the_users_own_trains_and_goes_on(uninterrupted, tiny_base, tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps(
        {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "gradient_clipping": 1.0,
         "zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}))  # fmt: skip
    part, by_fields = tmp_path / "part", uninterrupted(1, 1)[1]
    config = job(part, tiny_base, 1, 1)
    config["optimizer"]["deepspeed"] = {"config": str(tmp_path / "ds.json")}
    again, _ = trained(part, config, 1)
    assert again == by_fields
    config["optimizer"]["max_grad_norm"] = 2.0
    run = warm.start(tmp_path / "other", config)
    assert run.codes() == [78], run.text
    assert "gradient_clipping: got 1.0, ours 2.0 (optimizer.max_grad_norm)" in run.text and "Traceback" not in run.text


NVME = any(extensions_folder().rglob("async_io.so"))


@pytest.mark.skipif(not NVME, reason="apt-get install libaio-dev; python -m trainer.parallel.build_ops --nvme")
@pytest.mark.parametrize(("weights", "ranks"), [("none", 2), ("nvme", 1)])
def test_states_on_a_disk_come_back(tmp_path, weights, ranks):
    """Those of the large weights lie in files, those of the norms are too small for that."""
    whole, part = tmp_path / "whole", tmp_path / "part"

    def on_disk(folder):
        places = {"offload": "nvme", "offload_weights": weights, "nvme_path": str(folder / "disk")}
        made = job(folder, None, 3, ranks, deepspeed=places)
        shape = {"hidden_size": 256, "intermediate_size": 256, "num_layers": 2, "vocab_size": 600}
        made["model"] = {"init": "internlm2", "shape": shape, "lora": None, "quantization": "none", "dtype": "fp32"}
        return made

    measured = trained(whole, on_disk(whole), ranks, kept="model/model")
    files = {path.name.split("-")[0] for path in (whole / "out" / f"checkpoint-{STOP}").rglob("*.tensor.swp")}
    assert {"exp_avg", "exp_avg_sq"} < files
    again = trained(warm.stopped_at(whole, part, STOP), on_disk(part), ranks, kept="model/model")
    assert sorted(again[0]) == list(range(STOP + 1, STEPS + 1))
    for step, found in again[0].items():
        assert found == pytest.approx(measured[0][step], rel=1e-5)
    for name, weight in again[1].items():
        assert (weight - measured[1][name]).float().norm() <= 1e-3 * weight.float().norm()  # bf16
