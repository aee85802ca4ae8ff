"""`launch chat` on a small model that knows its conversations by heart: turns, commands, calls, runs and adapters, a
terminal, Ctrl-C, mistakes."""

import io
import json
import os
import re
import shutil
import signal
import sys

import pytest
import torch

from tests.trainer.person import Person
from tests.trainer.talker import TALKS, WEATHER, make_adapter, messages, write_run
from trainer.chat.history import History
from trainer.chat.interrupt import Interrupt
from trainer.chat.open import Overrides, open_session, overridden
from trainer.chat.repl import Repl
from trainer.chat.target import Target, find_target
from trainer.chat.terminal import Terminal
from trainer.cli import main
from trainer.config.job import Model, Shape
from trainer.data.message import Message
from trainer.new_model.create import new_model, save_internlm2

EXACT = ("--dtype", "fp32", "--temperature", "0", "--max-new-tokens", "60")
FERRY = "It is at  Lantern Harbour."


def session_of(folder, *, adapter=None, **overrides):
    asked = Overrides(**{"dtype": "fp32", "temperature": 0.0, "max_new_tokens": 60, **overrides})
    return open_session(overridden(find_target(str(folder), adapter, None), asked), asked, lambda text: None)


@pytest.fixture
def chat(talker, capsys, monkeypatch):
    """`trainer.cli chat`, with these lines typed into a pipe: exit code, stdout, stderr."""

    def go(*arguments, typed="", model=talker, exact=EXACT):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(["chat", str(model), *exact, *arguments])
        return code, *capsys.readouterr()

    return go


@pytest.fixture(scope="module")
def adapter(talker, tmp_path_factory, small_tokenizer):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    return make_adapter(talker, folder, small_tokenizer, session_of(talker).model)


def test_once_prints_the_answer_alone(chat):
    code, out, err = chat("--once", "Greet")
    assert (code, out) == (0, " 你好 😀\n  twice\n")  # no blank is lost, no token is shown
    assert "* template: internlm2 (the tokenizer's chat_template writes the same)" in err


def test_once_reads_the_prompt_from_stdin(chat):
    assert chat("--once", "-", typed="Where is the ferry?\n")[:2] == (0, f"{FERRY}\n")


def test_every_line_of_a_pipe_is_a_turn_of_one_conversation(chat):
    code, out, _ = chat(typed="Where is the ferry?\nWhen?\n")
    assert (code, out) == (0, f"{FERRY}\nAt six.\n")


def test_a_system_message_is_sent(chat):
    assert chat("--once", "Greet", "--system", "Be a pirate.")[1] == "Ahoy!\n"
    assert chat(typed="/system Be a pirate.\nGreet\n/system -\n/clear\nGreet\n")[1] == "Ahoy!\n 你好 😀\n  twice\n"


def test_what_is_undone_was_never_said(chat):
    """When? is answered right behind the ferry alone."""
    code, out, err = chat(typed="Where is the ferry?\nGreet\n/undo\nWhen?\n")
    assert (code, out.splitlines()[-1]) == (0, "At six.")
    assert "(taken back: Greet)" in err


def test_redo_brings_back_what_was_undone(chat):
    _, out, err = chat(typed="/redo\nWhere is the ferry?\n/undo\n/redo\nWhen?\n")
    assert out.splitlines() == [FERRY, "At six."] and "(nothing to bring back)" in err


def test_an_edited_question_takes_the_place_of_the_last(chat):
    _, out, _ = chat(typed="Greet\n/edit Where is the ferry?\nWhen?\n")
    assert out.splitlines()[-2:] == [FERRY, "At six."]


def test_retry_asks_the_last_question_again(chat):
    assert chat(typed="Where is the ferry?\n/retry\nWhen?\n")[1].splitlines() == [FERRY, FERRY, "At six."]


def test_several_lines_are_one_message(chat, tmp_path):
    typed = f'one\\\ntwo\n"""\nthree\n\n/four\n"""\n/save {tmp_path}/chat.json\n'
    assert chat(typed=typed)[0] == 0
    asked = [turn["content"] for turn in saved(tmp_path / "chat.json") if turn["role"] == "user"]
    assert asked == ["one\ntwo", "three\n\n/four"]


def saved(path):
    return json.loads(path.read_text())["messages"]


def test_a_saved_chat_goes_on_where_it_was(chat, tmp_path):
    assert chat(typed=f"Where is the ferry?\n/save {tmp_path}/chat.json\n")[0] == 0
    assert [turn["role"] for turn in saved(tmp_path / "chat.json")] == ["user", "assistant"]
    assert chat(typed=f"/load {tmp_path}/chat.json\nWhen?\n")[1] == "At six.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_a_saved_chat_is_a_row_that_training_reads(chat, tmp_path):
    from trainer.data.formats.chat import read_messages

    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": WEATHER}]))
    assert chat("--tools", str(tools), typed=f"Weather?\n22\n/save {tmp_path}/chat.json\n")[0] == 0
    found = read_messages(json.loads((tmp_path / "chat.json").read_text()))
    assert (found.messages, found.tools) == (messages(TALKS[3][1]), (WEATHER,))


def test_a_call_is_printed_as_json_and_its_result_answered(chat, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(WEATHER))
    code, out, _ = chat("--tools", str(tmp_path / "tools.json"), typed="Weather?\n/tool 22\n")
    call, answer = out.splitlines()
    assert (code, answer) == (0, "It is 22.")
    assert json.loads(call)["content"] == "Wait."
    assert json.loads(call)["tool_calls"][0]["function"] == {"name": "sky", "arguments": {"city": "上海"}}


def test_a_call_of_once_is_one_line_of_json(chat, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([WEATHER]))
    code, out, _ = chat("--tools", str(tmp_path / "tools.json"), "--once", "Weather?")
    assert code == 0 and out.count("\n") == 1
    assert json.loads(out)["tool_calls"][0]["function"]["name"] == "sky"


def test_stats_go_to_stderr(chat):
    _, out, err = chat("--once", "Where is the ferry?", "--stats")
    assert out == f"{FERRY}\n"
    assert re.search(r"\d+ tokens, [\d.]+ tok/s, the first after [\d.]+ s; prompt \d+ tokens", err)


def test_an_answer_that_is_cut_says_so(chat):
    code, out, err = chat("--once", "Tick", "--max-new-tokens", "5")
    assert code == 0 and out.startswith("tick t") and len(out) < 30
    assert "(cut after 5 tokens" in err


def test_a_message_may_begin_with_a_slash(chat, tmp_path):
    assert chat(typed=f"//usr\n/save {tmp_path}/chat.json\n")[0] == 0
    assert saved(tmp_path / "chat.json")[0]["content"] == "/usr"


# --- what a chat computes is what training encodes, cached or not ---


def test_pain_3_a_whole_chat_has_the_ids_of_training(talker):
    session, said = session_of(talker), []
    for turn in messages(TALKS[0][1]):
        if turn.role == "assistant":
            spoken = session.say(said)
            assert spoken.message == turn and spoken.ended == "stop"
        said.append(turn)
    encoder = session.encoder
    (trained,) = encoder.encode([encoder.template.render(said)])
    seen = session._cache._ids  # every token that the model has seen: all but the end of the last answer
    assert seen == trained.ids[: len(seen)] and len(trained.ids) - len(seen) == 2  # and the line end behind it


def test_turns_that_reuse_the_cache_are_answered_as_without(talker):
    asked = [[Message("user", text)] for text in ("Where is the ferry?", "Greet", "Where is", "Where is the ferry?")]
    asked.insert(2, [*messages(TALKS[0][1])[:2], Message("user", "When?")])
    one = session_of(talker)
    cached = [one.say(chat) for chat in asked]
    fresh = [session_of(talker).say(chat) for chat in asked]
    assert [spoken.message for spoken in cached] == [spoken.message for spoken in fresh]
    assert all(spoken.cached for spoken in cached[1:]) and not any(spoken.cached for spoken in fresh)


def test_a_cache_gives_the_same_logits(talker):
    session, chat = session_of(talker), messages(TALKS[0][1])[:3]
    session.say(chat[:1])
    ids = session.prompt_ids(chat, ())
    cache, count = session._cache.take(ids, 60)
    assert count == len(session.prompt_ids(chat[:1], ())) + len(FERRY.split()) or count > 20
    with torch.no_grad():
        whole = session.model(torch.tensor([ids])).logits[0, -1]
        rest = session.model(torch.tensor([ids[count:]]), past_key_values=cache).logits[0, -1]
    assert torch.allclose(whole, rest, atol=1e-4)


def test_a_batch_is_answered_as_one_at_a_time(talker):
    session = session_of(talker)
    chats = [[Message("user", text)] for text in ("Where is the ferry?", "Greet", "Tick", "What?", "a " * 40)]
    prompts = [session.prompt_ids(chat, ()) for chat in chats]
    together = session.say_all(prompts, [False] * len(prompts))
    assert together == [session.say(chat).message for chat in chats]
    assert together[0].content == FERRY


def test_ask_gives_the_text(talker):
    assert session_of(talker).ask([Message("user", "Where is the ferry?")]) == FERRY


# --- runs and adapters ---


def test_an_adapter_answers_on_its_base(chat, adapter):
    assert chat("--once", "Where is the ferry?", "--adapter", str(adapter))[1] == "Ahoy!\n"
    assert chat("--once", "Where is the ferry?", model=adapter)[1] == "Ahoy!\n"  # it names its base


@pytest.fixture
def run(talker, tmp_path):
    """The output folder of a run on a copy of the talker that lies beside it, in another folder than this one."""
    shutil.copytree(talker, tmp_path / "job" / "base")
    return write_run(tmp_path / "job" / "out", "./base")


def test_a_run_says_all_that_is_needed(chat, run, adapter):
    shutil.copytree(adapter, run / "adapter")
    code, out, err = chat("--once", "Where is the ferry?", model=run, exact=())
    assert (code, out) == (0, "Ahoy!\n")
    assert f"* template: internlm2 ({run}/config.yaml)" in err and f"{run.parent}/base, fp32, adapter" in err


def test_a_run_that_still_trains_answers_from_its_newest_valid_checkpoint(chat, run, adapter):
    from trainer.checkpoints.checkpoint import Writers, seal

    for step in (5, 10):
        shutil.copytree(adapter, run / f"checkpoint-{step}")
        seal(run / f"checkpoint-{step}", Writers(1, 1, split=False))
    (run / "checkpoint-10/adapter_model.safetensors").write_bytes(b"damaged")
    code, out, err = chat("--once", "Where is the ferry?", model=run, exact=())
    assert (code, out) == (0, "Ahoy!\n") and "checkpoint-5" in err


def test_a_run_without_any_result_says_so(chat, run):
    code, _, err = chat("--once", "x", model=run)
    assert code == 78 and f"{run}: got neither adapter/ nor a checkpoint" in err


def test_the_system_message_of_a_run_is_that_of_its_data(chat, talker, tmp_path):
    sources = {"sources": [{"path": "rows.jsonl", "system": "Be a pirate."}]}
    model = {"path": str(talker), "quantization": "none", "dtype": "fp32", "lora": None}
    run = write_run(tmp_path / "out", talker, data=sources, model=model)
    shutil.copytree(talker, run / "model")
    assert chat("--once", "Greet", model=run)[1] == "Ahoy!\n"
    assert chat("--once", "Greet", "--system", "", model=run)[1].startswith(" 你好")
    assert chat("--once", "Greet", model=run / "model")[1] == "Ahoy!\n"


def test_an_adapter_of_another_base_is_named(chat, adapter, talker, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 600}
    model = new_model(Shape(**shape, num_kv_heads=2), 1)
    shutil.copytree(talker, tmp_path / "other")
    save_internlm2(model.state_dict(), model.config, tmp_path / "other", [2])
    code, _, err = chat("--once", "x", "--adapter", str(adapter), model=tmp_path / "other")
    assert code == 78
    assert "an adapter of another base: its model.layers.0" in err and ", allowed: " in err and str(talker) in err, err
    assert re.search(r"lora_A is \[8, \d+\], allowed: \d+ in place 1", err), err
    assert "Traceback" not in err


def test_an_adapter_that_knows_another_name_of_the_base_is_told(chat, adapter, talker, tmp_path):
    shutil.copytree(talker, tmp_path / "renamed")
    code, out, err = chat("--once", "Where is the ferry?", "--adapter", str(adapter), model=tmp_path / "renamed")
    assert (code, out) == (0, "Ahoy!\n")
    assert f"warning: the adapter was trained on {talker}, and is put on {tmp_path}/renamed" in err


def test_four_bits_answer_too(chat):
    assert chat("--once", "Where is the ferry?", "--quantization", "nf4")[:2] == (0, f"{FERRY}\n")


def test_a_revision_is_that_of_the_name_on_the_hub_and_of_nothing_else():
    section = Model(path="some/base", revision="v1")
    assert Target("some/base", "some/base", section=section).model.revision == "v1"
    whole = Target("outputs/x/model", "some/base", section=section)  # what a run has trained is a folder
    assert (whole.model.revision, whole.revision_of(whole.tokenizer)) == (None, "v1")


# --- templates of folders that are no run ---


def described(talker, folder, **changes):
    shutil.copytree(talker, folder)
    for name, text in changes.items():
        path = folder / name.replace("__", ".")
        path.write_text(text) if text else path.unlink()
    return folder


def test_a_folder_without_chat_template_gets_its_familys(chat, talker, tmp_path):
    folder = described(talker, tmp_path / "m", chat_template__jinja="")
    code, out, err = chat("--once", "Where is the ferry?", model=folder)
    assert (code, out) == (0, f"{FERRY}\n") and "* template: internlm2 (that of internlm2's chat models" in err


def test_a_chat_template_of_its_own_is_used_as_it_is(chat, talker, tmp_path):
    text = "<s>{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}" \
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"  # fmt: skip
    _, _, err = chat("--once", "x", model=described(talker, tmp_path / "m", chat_template__jinja=text))
    assert "* template: tokenizer (the tokenizer's own chat_template)" in err


def test_a_chat_template_that_cannot_write_an_answer_gives_way(chat, talker, tmp_path):
    text = "{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}x"
    _, _, err = chat("--once", "x", model=described(talker, tmp_path / "m", chat_template__jinja=text))
    assert "* template: internlm2 (that of internlm2's chat models; the tokenizer's own chat_template cannot be" in err


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--template", "internlm"), "the tokenizer has no token <eoh>, <eoa>"),
        (("--adapter", "nowhere"), "--adapter: got nowhere, allowed: a folder with adapter_config.json"),
        (("--image", "nowhere.jpg"), "--image: got nowhere.jpg, allowed: a file that exists"),
        (("--image", __file__), "is a text model (internlm2), allowed: a model that sees images"),
        (("--tools", __file__), "--tools: " + __file__),
        (("--once", "long " * 600), "prompt: got 1"),
    ],
)
def test_a_mistake_ends_with_78_and_no_trace(arguments, words, chat):
    code, out, err = chat("--once", "x", *arguments)
    assert (code, out) == (78, "") and words in err and "Traceback" not in err


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(chat):
    _, _, err = chat("--once", "z" * 700)
    assert re.search(r"error: prompt: got \d{3} tokens, allowed: 511, one less than the model takes", err)


def test_no_such_model(chat, tmp_path):
    assert "got /nowhere, allowed: a folder that exists" in chat("--once", "x", model="/nowhere")[2]
    code, _, err = chat("--once", "x", model=tmp_path)
    assert code == 78 and f"model: got {tmp_path}, allowed: the folder of a checkpoint" in err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/nod\n", "got /nod, allowed: /undo, /redo, /retry"),
        ("/retry\n", "got no question yet"),
        ("/tool 3\n", "/tool: got a result, but the last answer calls nothing"),
        ("/save\n", "/save: got no file, allowed: /save FILE"),
        ("/save /nowhere/x.json\n", "/nowhere/x.json: cannot be written"),
        ("/load /nowhere/x.json\n", "/nowhere/x.json: "),
    ],
)
def test_a_mistake_in_a_pipe_ends_the_chat(typed, words, chat):
    code, _, err = chat(typed=typed)
    assert code == 78 and words in err and "Traceback" not in err


def test_want_of_memory_is_told(talker):
    from trainer.chat.problems import explained
    from trainer.errors import TrainError

    with pytest.raises(TrainError, match="out of memory") as raised, explained():
        torch.empty(2**60)
    assert raised.value.exit_code == 1 and "--quantization nf4" in raised.value.hint


def test_what_nobody_foresaw_is_told_without_a_trace(chat, monkeypatch):
    monkeypatch.setattr("trainer.chat.verbs.open_session", lambda *_, **__: 1 / 0)
    code, _, err = chat("--once", "x")
    assert code == 1 and re.search(r"error: unexpected ZeroDivisionError: division by zero \(.*test_chat.py:\d+\)", err)


# --- a terminal ---


def test_a_person_talks_interrupts_edits_and_leaves(talker, tmp_path):
    person = Person("chat", str(talker), *EXACT[:-1], "400")
    person.expect("/help lists the commands")
    person.expect("> ")
    person.type("Where is the ferry?\r")
    person.expect("It is at  Lantern Harbour.")
    person.expect("> ")
    person.type("/clear\r")
    person.expect("> ")
    person.type("Tick\r")
    person.expect("tick tick tick")
    person.type("\x03")  # ends the answer, keeps what there is
    person.expect(r"\(interrupted\)")
    person.expect("> ")
    person.type(f"/save {tmp_path}/chat.json\r")
    person.expect("written: ")
    kept = saved(tmp_path / "chat.json")[-1]["content"]
    assert kept.startswith("tick tick tick") and len(kept.split()) < 400
    person.type("/nod\r")
    person.expect("error: got /nod")
    person.expect("> ")  # the chat goes on
    person.interrupt("Ctrl-C again ends the chat")
    person.interrupt()
    assert person.code() == 130


def test_control_d_ends_a_chat(talker):
    person = Person("chat", str(talker), *EXACT)
    person.expect("> ")
    person.type("\x04")
    assert person.code() == 0


def test_an_interrupted_answer_is_kept_and_ends_once_with_130(talker):
    interrupt, session = Interrupt(), session_of(talker)
    session.answerer.stopped = lambda: interrupt.requested
    inner = session.model.model
    hook = inner.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    out, err = io.StringIO(), io.StringIO()
    repl = Repl(session, interrupt, Terminal(io.StringIO(), out, err), History(), False)
    assert repl.once("Where is the ferry?") == 130
    hook.remove()
    assert out.getvalue() == "I\n" and "(interrupted)" in err.getvalue()
    assert repl.history.exchanges[0].answer.content == "I"


def test_a_second_interrupt_ends_an_answer_at_once_and_takes_the_question_back(talker):
    interrupt, session = Interrupt(), session_of(talker)
    hook = session.model.model.register_forward_hook(lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in "12"])
    out, err = io.StringIO(), io.StringIO()
    repl = Repl(session, interrupt, Terminal(io.StringIO(), out, err), History(), False)
    assert repl.once("Where is the ferry?") == 130
    hook.remove()
    assert repl.history.messages() == [] and "(no answer: the question is taken back)" in err.getvalue()
    assert session.say([Message("user", "Where is the ferry?")]).message.content == FERRY
