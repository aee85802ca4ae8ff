"""The memory of a job by counting: parameters to the last one, bytes by part, what ZeRO and offloading move.

Figures written out are those of trainer-facts 4.1 and 4.2 and of the checkpoints' own headers on the hub.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.job.load import read_document
from launcher.services.job_model import check_job
from trainer.config.job import TrainConfig
from trainer.sizing import estimate as module
from trainer.sizing.estimate import HUB_SHAPES, Job, Placement, estimate, new_shape, shape_of_config

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples/quickstart"
INTERNLM2 = HUB_SHAPES["internlm/internlm2-chat-7b"]
PARAMETERS = {
    "internlm/internlm-chat-7b": 7_321_948_160,
    "internlm/internlm-20b": 20_088_714_240,
    "internlm/internlm2-chat-1_8b": 1_889_110_016,
    "internlm/internlm2-chat-7b": 7_737_708_544,
    "internlm/internlm2_5-7b-chat": 7_737_708_544,
    "internlm/internlm2_5-20b-chat": 19_861_149_696,
    "internlm/internlm3-8b-instruct": 8_804_241_408,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
}
GIVEN = {  # what the checkpoints' config.json files say of sizes
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 92544,
}  # fmt: skip
# the makers call its config internlm2, too
XCOMPOSER2 = {"model_type": "internlm2", "architectures": ["InternLMXComposer2ForCausalLM"], "img_size": 490, **GIVEN}


def job(shape=INTERNLM2, *, nodes=1, gpus=1, on_gpu=True, max_length=2048, model=None, **optimizer):
    sections = {
        "model": {"path": "x", **(model or {})},
        "data": {"sources": [{"path": "x"}], "max_length": max_length},
        "optimizer": optimizer,
    }
    return Job(TrainConfig.model_validate(sections), shape, Placement(nodes, gpus, on_gpu))


def gpu(*args, **more):
    return estimate(job(*args, **more)).gpu


def ds(stage, offload="none"):
    return {"zero_stage": stage, "offload": offload}


FULL = {"lora": None, "quantization": "none"}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_exact(name, count):
    assert HUB_SHAPES[name].parameters == count


@pytest.mark.parametrize(
    ("kind", "more", "name"),
    [
        ("internlm2", {"bias": False}, "internlm/internlm2-chat-7b"),
        ("internlm", {"intermediate_size": 11008, "num_key_value_heads": None, "vocab_size": 103168},
         "internlm/internlm-7b"),
        ("internlm3", {"intermediate_size": 10240, "num_hidden_layers": 48, "num_key_value_heads": 2, "head_dim": 128,
                       "vocab_size": 128512, "bias": False, "qkv_bias": False}, "internlm/internlm3-8b-instruct"),
        ("llama", {"vocab_size": 128256, "attention_bias": False, "mlp_bias": False}, "meta-llama/Llama-3.1-8B"),
        ("mistral", {"vocab_size": 32000, "num_key_value_heads": None}, "mistralai/Mistral-7B-v0.1"),
        ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                   "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}, "Qwen/Qwen2.5-0.5B"),
        ("internlm2", {"architectures": ["InternLMXComposer2ForCausalLM"], "img_size": 490},
         "internlm/internlm-xcomposer2-vl-7b"),
        ("internlmxcomposer2", {"img_size": 224}, "internlm/internlm-xcomposer2-7b"),
        ("qwen3", {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936,
                   "tie_word_embeddings": True}, "Qwen/Qwen3-4B"),
    ],
)  # fmt: skip
def test_a_config_file_says_the_same_as_the_name(kind, more, name):
    assert shape_of_config({"model_type": kind, **GIVEN, **more}) == HUB_SHAPES[name]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "got model_type None, known: internlm, internlm2"),
        ({"model_type": "mixtral", **GIVEN}, "got model_type 'mixtral'"),
        ({"model_type": "llama", **GIVEN, "hidden_size": "4096"}, "got hidden_size '4096', known: a whole number"),
        ({"model_type": "llama", **GIVEN, "num_hidden_layers": 0}, "got num_hidden_layers 0"),
        ({"model_type": "llama", **GIVEN, "vocab_size": True}, "got vocab_size True"),
        ({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, "got vocab_size None"),
        ({"model_type": "llama", **GIVEN, "head_dim": 10**400}, "got head_dim 1000"),
        ({**XCOMPOSER2, "img_size": None}, "got img_size None"),
        ({**XCOMPOSER2, "hd_num": 24}, "got an InternLM-XComposer2-4KHD or 2.5 checkpoint"),
        ({**XCOMPOSER2, "architectures": ["InternLMXComposerForCausalLM"]}, "got an InternLM-XComposer v1 checkpoint"),
    ],
)
def test_a_config_file_that_says_too_little_is_not_guessed_at(raw, words):
    with pytest.raises(ValueError, match=words):
        shape_of_config(raw)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("internlm-7b", 159.9), ("internlm2-7b", 167.8), ("internlm3-8b-instruct", 209.2), ("internlm2-20b", 327.2)],
)
def test_adapters_of_all_linear_layers(name, millions):
    assert estimate(job(HUB_SHAPES[f"internlm/{name}"])).trained / 1e6 == pytest.approx(millions, abs=0.05)


def test_what_sees_images_stays_in_bf16_and_gets_no_adapters():
    """Partial LoRA of 604 M parameters, a projector of 21 M, a tower of about 304 M."""
    shape = HUB_SHAPES["internlm/internlm-xcomposer2-vl-7b"]
    assert shape.seeing == pytest.approx(604e6 + 21e6 + 304e6, abs=1.5e6)
    assert shape.parameters == pytest.approx(8.67e9, abs=5e6)
    assert gpu(shape).weights - gpu().weights == 2 * shape.seeing
    assert estimate(job(shape)).trained == estimate(job()).trained


def test_adapters_of_some_layers():
    assert estimate(job(model={"lora": {"r": 8, "targets": ["q_proj", "v_proj"]}})).trained == 32 * 8 * (8192 + 5120)


def test_the_quickstart_counts_as_the_trainer_does():
    """Its second step prints: model: 4,135,168 parameters, 290,816 of them trained (README.md)."""
    first, second = (check_job(read_document(QUICKSTART / name)).train for name in ("base.yaml", "job.yaml"))
    found = estimate(Job(second, new_shape(first.model.shape), Placement(1, 1, on_gpu=False)))
    assert (found.parameters + found.trained, found.trained) == (4_135_168, 290_816)


@pytest.mark.parametrize(
    ("name", "bf16", "nf4"),
    [("internlm-7b", 14.64, 5.03), ("internlm2-7b", 15.48, 5.12), ("internlm3-8b-instruct", 17.61, 6.10),
     ("internlm2-20b", 39.72, 11.93)],
)  # fmt: skip
def test_weights_in_bf16_and_in_four_bits(name, bf16, nf4):
    shape = HUB_SHAPES[f"internlm/{name}"]
    assert gpu(shape, model={"quantization": "none"}).weights / 1e9 == pytest.approx(bf16, abs=0.005)
    assert gpu(shape).weights / 1e9 == pytest.approx(nf4, abs=0.006)


def test_four_bit_scales_of_one_weight():
    """A byte for 64 values, four more for 256 of these bytes, rounded up; and the tables."""
    small = replace(INTERNLM2, layers=1, hidden=64, intermediate=65, heads=1, kv_heads=1, head_dim=64)
    tables = 7 * module.NF4_TABLES
    assert module.nf4_scales(small) == 4 * (64 + 4) + 3 * (65 + 4) + tables


def test_adapters_without_deepspeed_are_float32():
    trained, found = estimate(job()).trained, gpu(deepspeed=None)
    assert (found.adapters, found.gradients, found.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    assert (found.deepspeed, found.step) == (0, 0)


@pytest.mark.parametrize(("stage", "split"), [(0, ""), (1, "o"), (2, "og"), (3, "ogw")])
def test_zero_splits_what_its_stage_says(stage, split):
    trained = estimate(job()).trained
    found = gpu(gpus=4, nodes=2, deepspeed=ds(stage))
    assert found.optimizer == trained * 12 // (8 if "o" in split else 1)
    assert found.gradients == trained * 2 // (8 if "g" in split else 1)
    assert found.adapters == trained * 2 // (8 if "w" in split else 1)


def test_zero_3_splits_the_base_but_not_its_scales():
    alone, split = gpu(deepspeed=ds(3)).weights, gpu(gpus=8, deepspeed=ds(3)).weights
    scales = module.nf4_scales(INTERNLM2)
    assert split == pytest.approx((alone - scales) / 8 + scales, abs=1)
    assert gpu(gpus=8, deepspeed=ds(2)).weights == alone


def test_offloading_moves_states_to_the_node():
    here, there = (estimate(job(gpus=4, model=FULL, deepspeed=ds(2, place))) for place in ("none", "cpu"))
    assert (there.gpu.optimizer, there.gpu.gradients, there.gpu.step) == (0, 0, 0)
    # float32 weights, two moments and gradients, split over the four ranks that share the node
    assert there.host - here.host == 16 * INTERNLM2.parameters


def test_moments_in_8_bits_take_a_byte_each_and_a_scale_for_256():
    trained, usual, found = (estimate(job()).trained, *(gpu(deepspeed=None, states=one) for one in ("float32", "8bit")))
    assert found.optimizer == trained * 2 + trained // 256 * 2 * 4
    assert usual.total - found.total == usual.optimizer - found.optimizer


def test_moments_of_an_embedding_stay_in_float32():
    found, table = gpu(model=FULL, deepspeed=None, states="8bit"), INTERNLM2.vocab * INTERNLM2.hidden
    rest = INTERNLM2.parameters - table
    assert found.optimizer == pytest.approx(8 * table + rest * (2 + 2 * 4 / 256), abs=1)


def test_moments_in_pages_are_the_nodes():
    here, there = (estimate(job(gpus=4, deepspeed=None, states=one)) for one in ("float32", "paged"))
    assert (there.gpu.optimizer, here.gpu.optimizer) == (0, 8 * here.trained)
    loading = 4 * INTERNLM2.largest_weight * 2  # at another time than training
    assert there.host - here.host == 4 * here.gpu.optimizer - loading
    assert there.gpu.step == here.gpu.optimizer // INTERNLM2.layers  # those of a layer are there for its step


def test_full_training_counts_every_parameter():
    found = gpu(model=FULL, deepspeed=None)
    assert (found.adapters, found.weights) == (0, 4 * INTERNLM2.parameters)
    assert found.weights + found.gradients + found.optimizer == 16 * INTERNLM2.parameters
    assert found.loss > 2048 * INTERNLM2.vocab * 4  # all logits at once
    assert gpu(model=FULL, gpus=8, deepspeed=ds(3)).weights == INTERNLM2.parameters * 2 // 8


def test_saving_every_parameter_needs_room_on_the_node():
    found = estimate(job(model=FULL, gpus=8))
    assert found.host > 2 * INTERNLM2.parameters


def test_float32_is_twice_as_large():
    half, whole = gpu(model={"quantization": "none"}), gpu(model={"quantization": "none", "dtype": "fp32"})
    assert whole.weights == 2 * half.weights
    assert whole.activations == 2 * half.activations


def test_checkpointing_keeps_the_input_of_each_layer():
    kept = 8 * 2048 * 4096 * 2 * 32
    assert gpu(batch_size=8).activations == pytest.approx(kept, rel=module.FRAGMENTATION + 1e-9)


def test_without_checkpointing_a_layer_keeps_all_that_is_not_cheap():
    """Input, q k v, attention output, the residual after it, gate and up."""
    kept = 2048 * (3 * 4096 + 6144 + 2 * 14336) * 2 * 32
    found = gpu(model={"gradient_checkpointing": False})
    assert found.activations == pytest.approx(kept, rel=module.FRAGMENTATION + 1e-9)
    assert found.layer < gpu().layer  # nothing is computed again


def test_policies_trade_memory_for_work():
    policies = ("none", "selective", "full", "offload")
    found = [module.gpu_memory(job(batch_size=8), policy) for policy in policies]
    assert [memory.total for memory in found] == sorted((memory.total for memory in found), reverse=True)
    assert found[-1].activations == module.ON_THEIR_WAY * 8 * 2048 * 4096 * 2
    assert found[0].weights - found[-1].weights == 92544 * 4096 * 2  # the embedding waits there, too
    assert found[0].buffers - found[1].buffers == INTERNLM2.linear_parameters // 32 * 31 * 2  # dense weights are kept
    assert [bool(module.offloaded_activations(job(), policy)) for policy in policies] == [False, False, False, True]


def test_heads_with_a_norm_are_there_twice():
    """In the attention of long rows: what goes into Qwen3's norm, and what comes out."""
    plain, normed = (gpu(replace(INTERNLM2, qk_norm=has), max_length=65536) for has in (False, True))
    width = INTERNLM2.query_width + INTERNLM2.kv_width
    assert normed.layer - plain.layer == pytest.approx((1 + module.FRAGMENTATION) * 65536 * width * 2, abs=1)


def test_the_peak_is_the_worst_moment():
    found = gpu()
    assert found.total == found.fixed + max(found.activations + max(found.layer, found.loss), found.step)
    stepping = gpu(model=FULL, max_length=8)
    assert stepping.total == stepping.fixed + stepping.step


def test_logits_of_long_rows_are_made_in_parts():
    slack = 1 + module.FRAGMENTATION
    logits = [gpu(max_length=length).loss / slack - 3 * length * 4096 * 2 for length in (16384, 32768)]
    assert logits[0] == pytest.approx(module.LOGITS_PART, rel=0.1)
    assert logits[1] == pytest.approx(module.LOGITS_PART, rel=0.1)


def test_auto_is_the_first_policy_that_fits_the_card():
    """Known or not, on a CPU too."""
    sizes = {policy: module.gpu_memory(job(), policy).total for policy in module.POLICIES}
    for policy, size in sizes.items():
        card = round(size / (1 - module.TOLERANCE)) + 1
        assert module.activation_policy(replace(job(), card=card)) == policy
    assert module.activation_policy(replace(job(), card=2**30)) == "offload"
    assert module.activation_policy(job()) == "full"
    assert module.activation_policy(replace(job(model=FULL), card=2**40)) == "full"
    assert module.activation_policy(job(on_gpu=False)) == "none"


def test_on_a_cpu_everything_is_memory_of_the_node():
    found = estimate(job(on_gpu=False))
    assert (found.gpu.context, found.shm) == (0, 0)
    assert found.host == module.HOST_PROCESS_CPU + found.gpu.total


def test_ranks_of_a_node_share_segments():
    assert estimate(job(gpus=1)).shm == 0
    assert estimate(job(gpus=8, nodes=2)).shm == 56 * module.NCCL_SHM_PAIR


SIZES = st.tuples(st.integers(1, 64), st.integers(8, 2**16), st.integers(1, 16), st.sampled_from([0, 1, 2, 3]))


@given(SIZES)
def test_more_rows_and_longer_ones_never_need_less(sizes):
    batch, length, gpus, stage = sizes
    small = job(gpus=gpus, batch_size=batch, max_length=length, deepspeed=ds(stage))
    more = job(gpus=gpus, batch_size=batch + 1, max_length=length, deepspeed=ds(stage))
    longer = job(gpus=gpus, batch_size=batch, max_length=length + 8, deepspeed=ds(stage))
    assert estimate(small).gpu.total <= min(estimate(more).gpu.total, estimate(longer).gpu.total)


@given(SIZES)
def test_sizes_are_whole_and_never_negative(sizes):
    batch, length, gpus, stage = sizes
    place = "cpu" if stage else "none"
    found = estimate(job(gpus=gpus, batch_size=batch, max_length=length, deepspeed=ds(stage, place)))
    parts = vars(found.gpu).values()
    assert all(isinstance(part, int) and part >= 0 for part in [*parts, found.host, found.shm])


def test_the_page_on_performance_has_these_figures():
    """A constant that changes changes the table of the tutorial's figures."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in page.splitlines() if line.startswith("| ")}
    found, matrices = estimate(job()), INTERNLM2.linear_parameters // 2 + module.nf4_scales(INTERNLM2)
    assert rows["parameters"][2] == f"{found.parameters:,}"
    assert rows["trained"][2] == f"{found.trained:,}"
    assert rows["weights"][2] == f"{found.gpu.weights / 1e9:.2f} GB"
    assert rows["total"][2] == f"{found.gpu.total / 1e9:.2f} GB"
    assert f"take {matrices / 1e9:.2f} GB with their scales" in page
    assert f"take {(found.gpu.weights - matrices) / 1e9:.2f} GB" in page
    assert f"float32 logits {2048 * INTERNLM2.vocab * 4 / 1e9:.2f} GB" in page
