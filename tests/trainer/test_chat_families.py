"""`launch chat` with every family: the template is found, the prompt is training's, an answer comes and ends."""

import json

import pytest
import torch

from tests.trainer.merging import save_base
from tests.trainer.test_chat import session_of
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.families.registry import CARDS
from trainer.new_model.seeded import write_model
from trainer.new_model.sizes import template_of

CHAT = [Message("user", "What is a layer?\n 层?"), Message("assistant", "It reads.")]
TEMPLATE = {family: template_of(card) for family, card in CARDS.items()}
TEMPLATE |= {"internlm2.5": "internlm2", "olmo": "internlm2"}


class Ends(torch.nn.Module):
    """A head that answers with one token."""

    def __init__(self, size, token):
        super().__init__()
        self.size, self.token = size, token

    def forward(self, hidden):
        return torch.nn.functional.one_hot(torch.full(hidden.shape[:-1], self.token), self.size).to(hidden.dtype)


def make(family, folder, tokenizer):
    """A tiny model with its tokenizer and chat template. olmo: of a class that only transformers has."""
    if family == "olmo":
        save_base(folder, family, tokenizer)
        (folder / "chat_template.jinja").write_text(TEMPLATES["internlm2"].jinja())
        return
    write_model(family.removesuffix(".5"), "tiny", folder, 3)
    if family == "internlm2.5":
        raw = json.loads((folder / "config.json").read_text())
        raw |= {"rope_theta": 5e7, "rope_scaling": {"type": "dynamic", "factor": 2.5}}
        (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("family", TEMPLATE)
def test_every_family_answers_in_its_template_and_stops(family, tmp_path, small_tokenizer_folder):
    torch.set_num_threads(1)
    make(family, tmp_path / "model", small_tokenizer_folder)
    session = session_of(tmp_path / "model", max_new_tokens=5)
    assert session.template is TEMPLATES[TEMPLATE[family]]
    (trained,) = session.encoder.encode([session.template.render(CHAT)])
    prompt = session.prompt_ids(CHAT[:1], ())
    assert trained.ids[: len(prompt)] == prompt and trained.labels[len(prompt)] != -100
    stops = set(session.answerer.stops)
    assert [label for label in trained.labels if label != -100][-1] in stops  # what training has taught as the end
    session.answerer.stops = [-1]
    spoken = session.say(CHAT[:1])
    assert (spoken.ended, spoken.tokens) == ("length", 5)
    session.answerer.stops = sorted(stops)
    for stop in stops:
        session.model.set_output_embeddings(Ends(session.model.config.vocab_size, stop))
        spoken = session.say(CHAT[:1])
        assert (spoken.ended, spoken.message.content, spoken.tokens) == ("stop", "", 1)
