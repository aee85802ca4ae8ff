"""The chat formats by name, with the strings of the model makers, the source beside each.

No system text is invented where a maker's template would add one, but for the sentence that Vicuna's and Alpaca's
formats begin with.
"""
# ruff: noqa: RUF001 - DeepSeek's tokens have full-width bars

from typing import Any

from trainer.data.tools import CHATGLM3, HERMES, INTERNLM2, LLAMA3, MISTRAL, QWEN
from trainer.data.turns import Answer, Around, System, Template, TurnTemplate
from trainer.errors import ConfigError

__all__ = ["TEMPLATES", "Template", "find_template"]

_IM = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    System("<|im_start|>system\n", "<|im_end|>\n"),
    Around("<|im_start|>user\n", "<|im_end|>\n"),
    Answer("<|im_start|>assistant\n", "<|im_end|>", "\n"),
)

TEMPLATES: dict[str, Template] = {
    # InternLM v1: turn ends are <eoh> and <eoa>; the tutorial's <|eoh|> and <|eoa|> do not exist. <|User|>, <|Bot|> and
    # <|System|> are ordinary text (modeling_internlm.py of internlm-chat-7b; the system line as XTuner and InternLM's
    # own web demo write it).
    "internlm": TurnTemplate(
        "internlm",
        ("<s>", "<eoh>", "<eoa>"),
        ("<eoa>", "</s>"),
        "<s>",
        System("<|System|>:", "\n"),
        Around("<|User|>:", "<eoh>\n"),
        Answer("<|Bot|>:", "<eoa>", "\n"),
    ),
    # InternLM2, 2.5 and 3: chat/chat_format.md of the InternLM repository, chat_template of internlm2_5-7b-chat
    "internlm2": TurnTemplate("internlm2", ("<s>", *_IM), ("<|im_end|>", "</s>"), "<s>", *_CHATML, INTERNLM2),
    "internlm3": TurnTemplate("internlm3", ("<s>", *_IM), ("<|im_end|>", "</s>"), "<s>", *_CHATML, INTERNLM2),
    # OpenAI's chatml.md; it has no beginning-of-sequence token
    "chatml": TurnTemplate("chatml", _IM, ("<|im_end|>",), "", *_CHATML, HERMES),
    # Qwen2.5-7B-Instruct and Qwen3 (its chat_template adds no system text; Qwen2.5's adds "You are Qwen, ...")
    "qwen": TurnTemplate("qwen", _IM, ("<|im_end|>", "<|endoftext|>"), "", *_CHATML, QWEN),
    # Meta's llama/generation.py (chat_completion): a new <s> at every question
    "llama2": TurnTemplate(
        "llama2",
        ("<s>", "</s>"),
        ("</s>",),
        "",
        System("<<SYS>>\n", "\n<</SYS>>\n\n", "user"),
        Around("<s>[INST] ", " [/INST]"),
        Answer("", "</s>", lead=" ", trail=" "),
    ),
    # Meta-Llama-3-8B-Instruct; functions as Llama-3.1-8B-Instruct writes them, without 3.1's dates in the system turn
    "llama3": TurnTemplate(
        "llama3",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        "<|begin_of_text|>",
        System("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        Around("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        Answer("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        LLAMA3,
    ),
    # The v3 tokenizer (Mistral-7B-Instruct-v0.3, Mixtral-8x22B-Instruct-v0.1, Mistral-Large-Instruct-2407), as
    # mistral-common's v3_spm.jinja. v1 and v2 have blanks elsewhere and no token [INST]: use `tokenizer` for them. v3
    # puts system text and functions before the last question, so that every turn has another prompt; here they stand
    # before the first, as in the newest templates (v13).
    "mistral": TurnTemplate(
        "mistral",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        ("</s>",),
        "<s>",
        System("", "\n\n", "user"),
        Around("[INST] ", "[/INST]"),
        Answer("", "</s>", lead=" "),
        MISTRAL,
    ),
    # gemma-3-4b-it; Gemma 1 and 2 are the same but refuse a system message
    "gemma": TurnTemplate(
        "gemma",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        ("<end_of_turn>", "<eos>"),
        "<bos>",
        System("", "\n\n", "user"),
        Around("<start_of_turn>user\n", "<end_of_turn>\n"),
        Answer("<start_of_turn>model\n", "<end_of_turn>", "\n"),
    ),
    # Phi-3-mini-4k-instruct (revision of July 2024) and Phi-3.5-mini-instruct, but for the <|endoftext|> that these put
    # behind a whole conversation: no answer ends with it
    "phi3": TurnTemplate(
        "phi3",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|end|>", "<|endoftext|>"),
        "",
        System("<|system|>\n", "<|end|>\n"),
        Around("<|user|>\n", "<|end|>\n"),
        Answer("<|assistant|>\n", "<|end|>", "\n"),
    ),
    # zephyr-7b-beta: the roles are ordinary text, and there is no <s>
    "zephyr": TurnTemplate(
        "zephyr",
        ("</s>",),
        ("</s>",),
        "",
        System("<|system|>\n", "</s>\n"),
        Around("<|user|>\n", "</s>\n"),
        Answer("<|assistant|>\n", "</s>", "\n"),
    ),
    # ChatGLM3's PROMPT.md, spaced as the chat_template of chatglm3-6b has it. The role that comes next ends an answer
    # (the makers stop at <|user|> and <|observation|>), so that token is trained, and written once
    "chatglm3": TurnTemplate(
        "chatglm3",
        ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<|user|>", "<|observation|>", "</s>"),
        "[gMASK]sop",
        System("<|system|>\n ", "", "first"),
        Around("<|user|>\n ", ""),
        Answer("<|assistant|>", "<|user|>", lead="\n "),
        CHATGLM3,
        shares_tokens=True,
    ),
    # FastChat's vicuna_v1.1 (Vicuna 1.1 to 1.5); the sentence is part of the format
    "vicuna": TurnTemplate(
        "vicuna",
        ("<s>", "</s>"),
        ("</s>",),
        "<s>",
        System(
            "",
            " ",
            "first",
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        ),
        Around("USER: ", " "),
        Answer("ASSISTANT:", "</s>", lead=" "),
    ),
    # Stanford Alpaca's train.py, where a conversation is one question; a further one stands right behind the answer, as
    # in FastChat's alpaca
    "alpaca": TurnTemplate(
        "alpaca",
        ("<s>", "</s>"),
        ("</s>",),
        "<s>",
        System(
            "",
            "\n\n",
            "first",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        ),
        Around("### Instruction:\n", "\n\n"),
        Answer("### Response:", "</s>"),
    ),
    # DeepSeek-V2.5, V3 and R1 with its distilled models; DeepSeek-LLM and V2 write "User: " and "Assistant: ": use
    # `tokenizer` for them
    "deepseek": TurnTemplate(
        "deepseek",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<｜end▁of▁sentence｜>",),
        "<｜begin▁of▁sentence｜>",
        System("", "", "first"),
        Around("<｜User｜>", ""),
        Answer("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    ),
}


def find_template(name: str | None, tokenizer: Any) -> Template:
    """The template of a name, `tokenizer`: the one that comes with the tokenizer. A job without a name has had one
    chosen before (trainer.data.recognise). Raises ConfigError."""
    if name is None:
        raise ConfigError("model.chat_template: not set", f"name the one that was trained with: {', '.join(TEMPLATES)}")
    if name == "tokenizer":
        from trainer.data.own_template import own_template

        return own_template(tokenizer)
    return TEMPLATES[name]
