"""The answers before, during and after training: a few at a time, the same as one by one, told as they come; and never
longer in the way than a signal lets them."""

import signal
import time

import pytest

from tests.trainer import warm
from tests.trainer.reference import BY_NAME, write_checkpoint
from tests.trainer.test_families import CPU
from tests.trainer.test_families import job as family_job
from tests.trainer.test_zero3 import job
from trainer.chat.answer import batch_inputs
from trainer.config.job import SamplePrompt, Sampling
from trainer.data.encode import Encoder
from trainer.data.templates import TEMPLATES
from trainer.fused.apply import use_fused_layers
from trainer.fused.checkpointing import policy_named
from trainer.models.load import load_model
from trainer.models.lora import attach_lora
from trainer.models.tokenizer import load_tokenizer
from trainer.training.samples import AT_ONCE, Sampler

TEXTS = ["Tick", "Greet", "Where is the ferry?", "Why?", "A question that is much longer than all the others are. " * 3]


def sampler_of(tokenizer, texts, **sampling):
    prompts = [SamplePrompt(prompt=text) for text in texts]
    drawn = Sampling(temperature=0, **sampling)
    return Sampler(Encoder(tokenizer, TEMPLATES["internlm2"]), tokenizer, drawn, prompts, lambda: False)


def ids_of(sampler, model, size):
    """The ids of all answers, asked so many at a time."""
    asked = [sampler._ids(prompt) for prompt in sampler.prompts]
    batches = [batch_inputs(model, asked[at : at + size], sampler.answerer.pad) for at in range(0, len(asked), size)]
    return [answer.ids for inputs in batches for answer in sampler.answerer.generate(model, inputs)]


@pytest.fixture(scope="module")
def talking(talker):
    tokenizer = load_tokenizer(str(talker))
    return tokenizer, load_model(family_job(talker, quantization="none", dtype="fp32"), CPU).eval()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_left_padding_changes_no_answer(tmp_path, name, small_tokenizer):
    """Of random models, in float32: whatever the prompts beside it, a prompt's positions and its mask are its own."""
    write_checkpoint(tmp_path, BY_NAME[name])
    model = load_model(family_job(tmp_path, quantization="none", dtype="fp32"), CPU).eval()
    asked = [[5, 9, 3, 17], [8], [4, 4, 31, 2, 6, 11, 7, 12]]
    told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    together = model.generate(**batch_inputs(model, asked, 0), **told)[:, max(map(len, asked)) :].tolist()
    alone = [model.generate(**batch_inputs(model, [ids], 0), **told)[0, len(ids) :].tolist() for ids in asked]
    assert together == alone


def test_answers_are_those_of_prompts_asked_one_by_one(talking):
    tokenizer, model = talking
    sampler = sampler_of(tokenizer, TEXTS, max_new_tokens=60)
    assert len(TEXTS) > AT_ONCE
    samples = sampler.answer_all(model, 0, lambda line: None)
    assert ids_of(sampler, model, AT_ONCE) == ids_of(sampler, model, 1)
    assert [sample.prompt for sample in samples] == TEXTS
    assert samples[2].answer == "It is at  Lantern Harbour."


def test_fused_layers_answer_alike_and_go_on_training(talking, talker):
    tokenizer, plain = talking
    config = family_job(talker, quantization="none", dtype="fp32", lora={"r": 2, "dropout": 0.0})
    model = attach_lora(load_model(config, CPU), config.model.lora, "base").train()
    use_fused_layers(model, policy_named("none", CPU))
    sampler = sampler_of(tokenizer, TEXTS, max_new_tokens=20)
    assert ids_of(sampler, model.eval(), AT_ONCE) == ids_of(sampler, plain, 1)
    model.train()
    sampler.answer_all(model, 0, lambda line: None)
    assert model.training


def test_each_answer_is_told_when_it_is_complete(talking):
    """The short ones of a handful before the long one, and a line first that says how many are to come."""
    tokenizer, model = talking
    lines = []
    sampler_of(tokenizer, TEXTS[:3], max_new_tokens=60).answer_all(model, 0, lines.append)
    assert lines[0] == "answering 3 sample prompts before training"
    assert [line.split("\n")[0] for line in lines[1:]] == ["Q: Where is the ferry?", "Q: Greet", "Q: Tick"]
    assert lines[1] == "Q: Where is the ferry?\n   It is at  Lantern Harbour."


def test_later_rounds_say_when_and_the_last_one_compares(talking):
    tokenizer, model = talking
    sampler, lines = sampler_of(tokenizer, TEXTS[2:3]), []
    before = sampler.answer_all(model, 5, lines.append)
    sampler.answer_all(model, 9, lines.append, before)
    assert lines[0] == "answering 1 sample prompt at step 5"
    told = "It is at  Lantern Harbour."
    assert lines[2:] == ["answering 1 sample prompt after training",
                         f"Q: Where is the ferry?\n   before: {told}\n   after:  {told}"]  # fmt: skip


def test_an_answer_is_short_unless_the_job_says_otherwise(talking):
    tokenizer, _ = talking
    assert sampler_of(tokenizer, []).answerer.room(10) == 200
    assert sampler_of(tokenizer, [], max_new_tokens=300).answerer.room(10) == 300


def quick(folder, base, stage, **runtime):
    config = job(folder, base, stage)
    config["runtime"] |= runtime
    return config


def test_nothing_is_asked_unless_the_job_asks_it(tiny_base, tmp_path):
    run = warm.start(tmp_path, quick(tmp_path, tiny_base, 0, sample_prompts=[]))
    assert run.codes() == [0], run.text
    assert "answering" not in run.text
    assert not (tmp_path / "out/samples.jsonl").exists() and not (tmp_path / "out/samples.md").exists()


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (3, 2)])
def test_a_signal_before_the_first_step_ends_the_answers_at_once(tiny_base, tmp_path, stage, ranks):
    endless = {"temperature": 0, "max_new_tokens": 2**17}
    run = warm.start(tmp_path, quick(tmp_path, tiny_base, stage, sampling=endless), ranks)
    run.wait_for("^answering 1 sample prompt before training")
    for rank in range(ranks):
        run.tell(signal.SIGTERM, rank)
    began = time.monotonic()
    assert run.codes() == [75] * ranks, run.text
    assert time.monotonic() - began < 20
    assert "error: told to stop before the first step: nothing to save" in run.text
    assert "\nstep " not in run.text
