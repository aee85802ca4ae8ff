"""Every family against an arithmetic of its own (tests/trainer/reference.py), with padding and caches; and that it
trains in four bits, is saved, and comes back."""

import pytest
import torch
from peft import PeftModel

from tests.trainer.reference import ALL, BY_NAME, VOCAB, Reference, without_ntk, write_checkpoint
from trainer.config.job import TrainConfig
from trainer.models.load import load_model
from trainer.models.lora import save_adapter
from trainer.training.build import build_model

CPU = torch.device("cpu")
NAMES = [facts.kind for facts in ALL]
INTERNLM = [facts.kind for facts in ALL if facts.ntk]
CLOSE = {"atol": 1e-5, "rtol": 0}


def job(path, **model):
    return TrainConfig.model_validate(
        {
            "model": {"path": str(path), "quantization": "none", "dtype": "fp32", **model},
            "data": {"sources": [{"path": "x"}]},
        }
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Name of a family -> (the model that the trainer loads, the reference), each loaded once."""
    found = {}

    def load(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("families") / name
            weights = write_checkpoint(folder, BY_NAME[name])
            found[name] = load_model(job(folder), CPU).eval(), Reference(BY_NAME[name], weights)
        return found[name]

    return load


def tokens(count, seed=0):
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def padded(rows, side):
    """Rows of several lengths as one batch: ids, mask and positions, padded with token 0 on a side."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, at], mask[place, at] = row, 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def given_one_by_one(model, ids, new):
    """The logits that `answer` of the reference has, by the model with its cache."""
    out = model(input_ids=ids[None], use_cache=True)
    rows = [out.logits[0, -1]]
    for one in new:
        held = {"cache": out.cache} if hasattr(out, "cache") else {"past_key_values": out.past_key_values}
        out = model(input_ids=one.view(1, 1), use_cache=True, **held)
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_an_arithmetic_written_from_the_facts(loaded, name, side):
    model, reference = loaded(name)
    rows = [tokens(9, 1), tokens(17, 2), tokens(1, 3)]
    ids, mask, positions = padded(rows, side)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, real, logits in zip(rows, mask.bool(), found, strict=True):
        torch.testing.assert_close(logits[real], reference(row), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_cached_generation_equals_uncached(loaded, name):
    model, reference = loaded(name)
    ids, new = tokens(9), tokens(8, 5)
    cached = given_one_by_one(model, ids, new)
    torch.testing.assert_close(cached, reference.answer(ids, new), **CLOSE)
    with torch.no_grad():
        uncached = model(input_ids=torch.cat([ids, new])[None], use_cache=False).logits[0, len(ids) - 1 :]
    torch.testing.assert_close(cached, uncached, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_padded_on_the_left_is_answered_as_each_row_alone(loaded, name):
    model, reference = loaded(name)
    rows = [tokens(4, 6), tokens(10, 7)]
    ids, mask, _ = padded(rows, "left")
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=VOCAB + 1, pad_token_id=0
    )[:, ids.shape[1] :]
    for row, answer in zip(rows, found, strict=True):
        for token in answer:
            assert token == reference(row)[-1].argmax()
            row = torch.cat([row, token[None]])


@pytest.mark.parametrize("length", [24, 25, 60])
@pytest.mark.parametrize("name", INTERNLM)
def test_dynamic_ntk_past_the_trained_length(loaded, name, length):
    model, reference = loaded(name)
    ids = tokens(length)
    with torch.no_grad():
        found = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found, reference(ids), atol=2e-5, rtol=0)
    plain = Reference(without_ntk(reference.facts), reference.weights)(ids)
    assert torch.equal(reference(ids), plain) == (length == 24)


@pytest.mark.parametrize("start", [20, 30])
@pytest.mark.parametrize("name", INTERNLM)
def test_cached_generation_past_the_trained_length_is_the_originals(loaded, name, start):
    """InternLM v1 turns cached keys by the base of now; the later ones keep each as it was turned when it came."""
    model, reference = loaded(name)
    ids, new = tokens(start), tokens(12, 5)
    torch.testing.assert_close(given_one_by_one(model, ids, new), reference.answer(ids, new), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", INTERNLM)
def test_padded_rows_past_the_trained_length_have_the_base_of_the_longest(loaded, name):
    model, reference = loaded(name)
    rows = [tokens(30, 8), tokens(27, 9)]
    ids, mask, _ = padded(rows, "left")
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=VOCAB + 1, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    for place, (row, longer) in enumerate(zip(rows, (0, 3), strict=True)):
        logits = torch.stack([step[place] for step in found.logits])
        new = found.sequences[place, ids.shape[1] : -1]
        expected = Reference(reference.facts, reference.weights, longer).answer(row, new)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", INTERNLM)
def test_a_text_does_not_change_the_next_one(loaded, name):
    """transformers' own dynamic rope keeps the base of the longest text until one is within the trained length."""
    model, reference = loaded(name)
    ids = tokens(30)
    with torch.no_grad():
        model(input_ids=tokens(70)[None])
        found = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found, reference(ids), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_trains_in_four_bits_and_comes_back(tmp_path, name):
    write_checkpoint(tmp_path / "base", BY_NAME[name])
    config = job(tmp_path / "base", quantization="nf4", lora={"r": 4, "dropout": 0.0})
    model = build_model(config, CPU)
    adapters = [part.partition(".lora_A")[0] for part, _ in model.named_parameters() if "lora_A" in part]
    assert {part.rpartition(".")[2] for part in adapters} == set(LINEARS.get(name, LINEARS["llama"]))
    ids = tokens(20)[None]
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    save_adapter(model, model.state_dict(), tmp_path)
    again = PeftModel.from_pretrained(load_model(config, CPU), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits, **CLOSE)


LINEARS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
