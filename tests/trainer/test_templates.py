"""The exact strings of each chat format (trainer-facts 1.1), written out by hand."""

import pytest

from trainer.config import TemplateName
from trainer.data.maps import Message
from trainer.data.templates import TEMPLATES, render_text

CHAT = [
    Message("system", "S"),
    Message("user", "U1"),
    Message("assistant", "A1"),
    Message("user", "U2"),
    Message("assistant", "A2"),
]
WHOLE = {
    "internlm2": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n"
    "<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    "internlm": "<s><|System|>:S\n<|User|>:U1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:U2<eoh>\n<|Bot|>:A2<eoa>\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST] A2 </s>",
}
PROMPT = {
    "internlm2": "<s><|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
    "chatml": "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
    "internlm": "<s><|User|>:U1<eoh>\n<|Bot|>:",
    "llama2": "<s>[INST] U1 [/INST]",
}
TRAINED = {
    "internlm2": "A1<|im_end|>A2<|im_end|>",
    "chatml": "A1<|im_end|>A2<|im_end|>",
    "internlm": "A1<eoa>A2<eoa>",
    "llama2": " A1 </s> A2 </s>",
}


@pytest.mark.parametrize("name", TemplateName.__args__)
def test_template_renders_the_makers_text(name):
    assert render_text(TEMPLATES[name].render(CHAT)) == WHOLE[name]


@pytest.mark.parametrize("name", TemplateName.__args__)
def test_prompt_ends_where_the_answer_begins(name):
    prompt = render_text(TEMPLATES[name].prompt([Message("user", "U1")]))
    assert prompt == PROMPT[name]
    assert render_text(TEMPLATES[name].render([Message("user", "U1"), Message("assistant", "A1")])).startswith(prompt)


@pytest.mark.parametrize("name", TemplateName.__args__)
def test_answers_and_their_end_tokens_are_trained_and_nothing_else(name):
    assert "".join(segment.text for segment in TEMPLATES[name].render(CHAT) if segment.trained) == TRAINED[name]


@pytest.mark.parametrize("name", TemplateName.__args__)
def test_an_answer_marked_without_loss_is_not_trained(name):
    quiet = [
        Message("user", "U1"),
        Message("assistant", "A1", loss=False),
        Message("user", "U2"),
        Message("assistant", "A2"),
    ]
    assert "A1" not in "".join(segment.text for segment in TEMPLATES[name].render(quiet) if segment.trained)
