"""Which template a model gets for which none is named, and what is said of it."""

import copy
import re
import shutil

import pytest
import yaml

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART, load_tokenizer
from trainer.config.job import TrainConfig
from trainer.data.recognise import recognise, with_template
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError

SAME = "the tokenizer's chat_template writes the same"
OWN = "the tokenizer's own chat_template"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
SYSTEM = "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nI am Q.<|im_end|>\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASKS
# as Qwen2.5's and SmolLM2's
WITH_SYSTEM = "{% for m in messages %}" + SYSTEM + TURN + "{% endfor %}" + ASKS
OTHER = (
    "{% for m in messages %}### {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)
REFUSES = "{{ raise_exception('not today') }}"
# DeepSeek-R1's: a prompt begins the thoughts, which older answers have no more
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'system' %}{{ m.content }}{% else %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
# Llama 3.1's: dates in a system turn that is always there
DATES = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
KEPT = "kept"  # the chat_template that comes with the tokenizer


@pytest.mark.parametrize(
    ("maker", "model_type", "jinja", "name", "reason"),
    [
        ("qwen3", "qwen3", KEPT, "qwen", SAME),
        ("gemma3", "gemma3_text", KEPT, "gemma", SAME),
        ("llama3", "llama", KEPT, "llama3", SAME),
        ("llama3_1", "llama", KEPT, "llama3", SAME),
        ("deepseek_v3", "deepseek_v3", KEPT, "deepseek", SAME),
        ("qwen3", "llama", CHATML, "chatml", SAME),
        ("qwen3", "qwen2", WITH_SYSTEM, "qwen", "that of qwen2's chat models; .* the same turns and adds to them"),
        ("llama3_1", "llama", DATES, "llama3", "that of llama's chat models; .* the same turns and adds to them"),
        ("qwen3", "llama", WITH_SYSTEM, "tokenizer", OWN),
        ("qwen3", "qwen2", OTHER, "tokenizer", OWN),
        ("llama3_1", "llama", OTHER.replace("<|im_end|>", "<|eot_id|>"), "tokenizer", OWN),
        ("deepseek_v3", "qwen2", R1, "deepseek", f"{OWN} cannot be trained with; it writes the same turns"),
        ("qwen3", "qwen2", REFUSES, "qwen", f"that of qwen2's chat models; {OWN} cannot be trained with"),
        ("internlm", "internlm", None, "internlm", "that of internlm's chat models; the tokenizer has no"),
        ("internlm2", "internlm2", None, "internlm2", "that of internlm2's chat models"),
        ("internlm2", "xcomposer2", None, "internlm2", "that of xcomposer2's chat models"),
        ("llama2", "llama", None, "llama2", "that of llama's chat models; the tokenizer has no chat_template"),
        ("llama3", "llama", None, "llama3", "that of llama's chat models; the tokenizer has no chat_template"),
        ("gemma3", "gemma2", None, "gemma", "that of gemma2's chat models; the tokenizer has no chat_template"),
    ],
)
def test_a_real_tokenizer_gets_the_template_of_its_model(maker, model_type, jinja, name, reason, maker_folder):
    choice = recognise(changed(load_tokenizer(str(maker_folder(maker))), jinja), model_type)
    assert choice.name == name
    assert re.match(reason, choice.reason), choice.reason


def changed(tokenizer, jinja):
    if jinja is KEPT:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = jinja
    return tokenizer


@pytest.mark.parametrize("name", ["chatml", "internlm", "llama3", "qwen", "gemma", "mistral"])
def test_our_own_jinja_is_known_again(name, all_tokens_folder):
    tokenizer = changed(load_tokenizer(str(all_tokens_folder)), "{# another text #}" + TEMPLATES[name].jinja())
    family = {"chatml": "", "llama3": "llama", "qwen": "qwen2"}.get(name, name)
    assert recognise(tokenizer, family).name == name


@pytest.mark.parametrize(
    ("model_type", "jinja", "words", "hint"),
    [
        ("falcon", None, "its tokenizer has no chat_template, and its model_type falcon", "chat_template: internlm2"),
        ("", None, "its model_type (none) is that of no family", "has those of internlm2"),
        ("falcon", REFUSES, "has a chat_template that cannot be used (messages: got what the tokenizer's template "
         "refuses: not today", "chat_template: internlm2"),
        ("mistral", None, "its model_type mistral is that of no family whose tokens", "chat_template: internlm2"),
    ],
)  # fmt: skip
def test_a_model_of_no_known_template_is_told_what_was_tried_and_what_to_write(
    model_type, jinja, words, hint, small_tokenizer
):
    with pytest.raises(ConfigError) as caught:
        recognise(changed(small_tokenizer, jinja), model_type)
    assert caught.value.message.startswith("model.chat_template: not set, and no template is known for this model")
    assert words in caught.value.message and hint in caught.value.hint
    with pytest.raises(ConfigError, match="--template: not set"):
        recognise(changed(small_tokenizer, jinja), model_type, "--template")


def config(path, **model):
    section = {"path": path and str(path), **model}
    return TrainConfig.model_validate({"model": section, "data": {"sources": [{"path": "x"}]}})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("internlm", "got internlm, but the tokenizer has no token <eoh>, <eoa>"),
        ("tokenizer", "got tokenizer, but the tokenizer has no chat_template"),
    ],
)
def test_the_hint_for_a_template_of_another_model_names_that_of_this_one(name, problem, small_tokenizer_folder):
    tokenizer = changed(load_tokenizer(str(small_tokenizer_folder)), None)
    with pytest.raises(ConfigError) as caught:
        with_template(config(small_tokenizer_folder, chat_template=name), tokenizer)
    assert caught.value.message == f"model.chat_template: {problem}"
    assert caught.value.hint.startswith("leave it out, or write chat_template: internlm2 (that of internlm2's chat mod")


def test_a_template_that_the_job_names_is_kept_without_a_word(small_tokenizer_folder, small_tokenizer):
    job = config(small_tokenizer_folder, chat_template="chatml")
    assert with_template(job, small_tokenizer) == (job, "")


def test_a_new_model_has_the_template_of_its_family():
    job, line = with_template(config(None, init="internlm2", lora=None, quantization="none"), None)
    assert job.model.chat_template == "internlm2" and line == "template: internlm2 (that of internlm2's chat models)"


def test_a_run_says_the_template_and_keeps_its_name(tiny_base, tmp_path):
    """In config.yaml, for merge and chat, and beside the weights, for servers; to name it later changes nothing."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    output = tmp_path / "out"
    train = {
        "settings": {"output_dir": str(output), "device": "cpu"},
        "model": {"path": str(base), "lora": None, "quantization": "none", "dtype": "fp32"},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl")}], "max_length": 64},
        "optimizer": {"max_steps": 1, "accumulation": 1, "deepspeed": None},
        "runtime": {"sample_prompts": [], "save_every": 1},
    }
    first = warm.start(tmp_path, train)
    assert first.codes() == [0], first.text
    assert "template: internlm2 (that of internlm2's chat models; the tokenizer has no chat_template)" in first.text
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["chat_template"] == "internlm2"
    assert (output / "model/chat_template.jinja").read_text() == TEMPLATES["internlm2"].jinja()
    train["model"]["chat_template"] = "internlm2"
    again = warm.start(tmp_path, train)
    assert again.codes() == [0], again.text
    assert "nothing is left to train" in again.text
