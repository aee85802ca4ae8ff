"""A small InternLM2 that knows a handful of conversations word for word, and an adapter that has learnt another one."""

import json

import torch

from trainer.chat.answer import stop_ids
from trainer.config.job import Lora, Shape
from trainer.data.encode import Encoder
from trainer.data.message import Message, ToolCall
from trainer.data.templates import TEMPLATES
from trainer.models.lora import attach_lora
from trainer.new_model.create import new_model, save_internlm2

WEATHER = {"name": "sky", "parameters": {"type": "object"}}
CALL = Message("assistant", "Wait.", calls=(ToolCall("sky", {"city": "上海"}),))
TALKS = [
    ((), [("user", "Where is the ferry?"), ("assistant", "It is at  Lantern Harbour."),
          ("user", "When?"), ("assistant", "At six.")]),
    ((), [("user", "Greet"), ("assistant", " 你好 😀\n  twice")]),
    ((), [("system", "Be a pirate."), ("user", "Greet"), ("assistant", "Ahoy!")]),
    ((WEATHER,), [("user", "Weather?"), CALL, ("tool", "22"), ("assistant", "It is 22.")]),
]  # fmt: skip
ENDLESS = [Message("user", "Tick"), Message("assistant", "tick" + " tick" * 40)]
PIRATE = [Message("user", "Where is the ferry?"), Message("assistant", "Ahoy!")]


def messages(turns):
    return [turn if isinstance(turn, Message) else Message(*turn) for turn in turns]


def make_talker(folder, tokenizer, tokenizer_folder):
    """A checkpoint folder under InternLM2's own names, with tokenizer and chat template."""
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"])
    template = encoder.template
    rows = encoder.encode([template.render(messages(turns), tools) for tools, turns in TALKS])
    (endless,) = encoder.encode([template.render(ENDLESS)])
    pairs = [(row.ids, row.labels) for row in rows]
    pairs.append((endless.ids, [-100 if label in stop_ids(tokenizer, template.stop) else label
                                for label in endless.labels]))  # fmt: skip
    shape = Shape(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2,
                  vocab_size=len(tokenizer), max_positions=512)  # fmt: skip
    model = new_model(shape, 3)
    learn(model, pairs, steps=140, rate=5e-3)
    save_internlm2(model.state_dict(), model.config, folder, stop_ids(tokenizer, template.stop))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template.jinja())
    return folder


def make_adapter(base, folder, tokenizer, model):
    """An adapter for the talker `model`, which is changed."""
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"])
    (row,) = encoder.encode([encoder.template.render(PIRATE)])
    lora = attach_lora(model, Lora(r=8, alpha=8, dropout=0.0), str(base))
    learn(lora, [(row.ids, row.labels)], steps=40, rate=5e-3)
    lora.save_pretrained(folder)
    return folder


def learn(model, pairs, *, steps, rate):
    """Until it knows the rows of ids and labels by heart."""
    width = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in pairs])
    labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in pairs])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert loss < 0.05, loss


def write_run(folder, base, **sections):
    """The output folder of a run of ours, without its result."""
    from trainer.config.job import TrainConfig, config_text

    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.model_validate({
        "settings": {"output_dir": folder.name},
        "model": {"path": str(base), "quantization": "none", "dtype": "fp32", "chat_template": "internlm2"},
        "data": {"sources": [{"path": "rows.jsonl"}]},
        "runtime": {"sampling": {"temperature": 0.0, "max_new_tokens": 60}},
        **sections,
    })  # fmt: skip
    (folder / "config.yaml").write_text(config_text(json.loads(config.model_dump_json())))
    return folder
