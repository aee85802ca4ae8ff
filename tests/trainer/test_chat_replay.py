"""Steps that are recorded and replayed into a fixed cache answer as the usual ones do. Without a GPU the recording
calls the model again; tests/gpu records a graph."""

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.trainer.test_chat import session_of
from trainer.chat.replay import can_replay, decides_nothing, replay_steps
from trainer.chat.session import ChatSession
from trainer.config.job import Model, TrainConfig
from trainer.data.message import Message
from trainer.models.load import load_model
from trainer.new_model.seeded import write_model

TURNS = [["Where is the ferry?"], ["Where is the ferry?", "When?"], ["Greet"], ["Where is the ferry?", "Greet"]]


def asked(turns):
    said = [Message("user", turn) for turn in turns]
    return [message for turn in said for message in (turn, Message("assistant", "Yes."))][:-1]


def called_again(calls):
    """Records by calling: a step computes nothing until it is replayed, into one output."""

    def record(work):
        output = CausalLMOutputWithPast()

        def replay():
            calls.append(1)
            for name, value in work().items():
                output[name] = value

        return replay, output

    return record


def replayed(session, calls):
    replay_steps(session.model, called_again(calls))
    return ChatSession(session.model, session.answerer, fixed=True)


def test_answers_are_those_of_the_usual_steps(talker):
    calls = []
    usual, other = session_of(talker), replayed(session_of(talker), calls)
    for turns in TURNS:
        wanted, found = usual.say(asked(turns)), other.say(asked(turns))
        assert (found.message, found.cached) == (wanted.message, wanted.cached)
    assert len(calls) > 10


def test_the_room_grows_with_the_chat(talker, monkeypatch):
    monkeypatch.setattr("trainer.chat.cache.BLOCK", 8)
    usual, other = session_of(talker), replayed(session_of(talker), [])
    chats = [["Greet"], ["Greet", "Where is the ferry? " * 4], ["Greet"]]
    rooms = []
    for turns in chats:
        assert other.say(asked(turns)).message == usual.say(asked(turns)).message
        rooms.append(other._cache._room)
    assert rooms[0] < rooms[1] == rooms[2]


def test_a_model_that_cannot_be_recorded_is_called(talker):
    def refused(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    usual, other = session_of(talker), session_of(talker)
    replay_steps(other.model, refused)
    other = ChatSession(other.model, other.answerer, fixed=True)
    for turns in TURNS[:2]:
        assert other.say(asked(turns)).message == usual.say(asked(turns)).message


def test_nothing_is_recorded_without_a_gpu(talker):
    assert not can_replay(session_of(talker).model, "none")


FAMILIES = {"internlm2": True, "internlm3": True, "qwen3": True,
            "internlm": False, "xcomposer2": False, "gemma2": False}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_decide_in_python_are_not_recorded(family, tmp_path):
    """InternLM v1 asks how much is cached, XComposer2 where images are, Gemma 2 has windows."""
    write_model(family, "tiny", tmp_path / "base", 7)
    chosen = Model(path=str(tmp_path / "base"), quantization="none")
    model = load_model(TrainConfig.model_construct(model=chosen), torch.device("cpu"))
    assert decides_nothing(model) == FAMILIES[family]
