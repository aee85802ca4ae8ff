"""Whatever a row holds is trained, or the row is refused, or it is named and counted with the place of the first."""

import copy
import json

import pytest

from tests.trainer.conftest import SHARED
from tests.trainer.test_formats import chat, golden, mapped
from trainer.config.job import FORMATS
from trainer.data.message import Message, RowError, ToolCall
from trainer.data.pipeline import Pipeline
from trainer.data.store import Samples, SampleWriter, ids_of, labels_of
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError

CASES = SHARED.parent / "cases" / "rows"
Q, A = ("user", "q"), ("assistant", "a")
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# as SmolLM2's: it knows neither functions nor calls
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASKS
REASONING = CHATML.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}")
TOOL = {"name": "tide_times", "description": "Times of high water", "parameters": {"type": "object", "properties": {}}}
CALLS = [{"type": "function", "function": {"name": "tide_times", "arguments": {"harbour": "Lantern"}}}]


@pytest.fixture
def run(tmp_path, small_tokenizer):
    """Runs the pipeline over a config; gives the trained texts and the report."""

    def go(config, *, jinja=None):
        tokenizer = copy.deepcopy(small_tokenizer)
        tokenizer.chat_template = jinja
        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with SampleWriter(folder) as writer:
            report = Pipeline(config, tokenizer, tmp_path / "rejected.jsonl").run(writer)
            writer.close({})
        texts = [tokenizer.decode(ids_of(one)[labels_of(one) >= 0]) for one in Samples(folder)]
        return texts, report

    return go


# flags


def said(*turns):
    return {"conversations": [{"from": role, "value": value, **more} for role, value, more in turns]}


@pytest.mark.parametrize(("key", "value"), [
    ("loss", False), ("weight", 0), ("train", False), ("training", 0.0),
    ("Loss", False), ("trainable", False), ("train_on", 0), ("do_train", False), ("doTrain", False), ("LOSS", 0),
])  # fmt: skip
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", lambda flag: {"messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "bad", **flag},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "good"}]}),
        ("sharegpt", lambda flag: said(("human", "q", {}), ("gpt", "bad", flag), ("human", "r", {}),
                                       ("gpt", "good", {}))),
        ("msagent", lambda flag: said(("user", "q", {}), ("assistant", "bad", flag), ("user", "r", {}),
                                      ("assistant", "good", {}))),
        ("moss", lambda flag: {"chat": {"turn_1": {"Human": "q", "MOSS": "bad", **flag},
                                        "turn_2": {"Human": "r", "MOSS": "good"}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_turn_that_is_not_to_be_trained_is_not_in_any_format(name, row, key, value):
    found = mapped(name, row({key: value}))
    assert [turn.loss for turn in found.messages if turn.role == "assistant"] == [False, True]
    assert not found.unread and not any(turn.extra for turn in found.messages)
    assert all(turn.loss for turn in mapped(name, row({key: None})).messages)


def test_a_call_that_is_not_to_be_trained_is_not():
    call = ("function_call", '{"name": "f", "arguments": {}}', {"loss": False})
    found = mapped("sharegpt", said(("human", "q", {}), call, ("observation", "r", {}), ("gpt", "a", {})))
    assert [turn.loss for turn in found.messages] == [True, False, True, True]


@pytest.mark.parametrize("flag", [{}, {"loss": None}, {"weight": None, "Train": None}, {"loss": False}])
def test_of_trls_prompt_only_the_completion_is_trained(flag):
    """A column of flags in parquet is null where a row has none."""
    prompt = chat(Q, {"role": "assistant", "content": "a", **flag}, ("user", "r"))["messages"]
    row = {"prompt": prompt, "completion": chat(("assistant", "b"))["messages"]}
    found = mapped("prompt_completion", row)
    assert [(turn.content, turn.loss) for turn in found.messages if turn.role == "assistant"] == [
        ("a", False), ("b", True)]  # fmt: skip


# what no reader uses


def objects(value, place=()):
    """The place of every object in a row."""
    if isinstance(value, dict):
        yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from objects(inner, (*place, key))


LEFT_OUT = ("messages", 9)  # the golden row's turn behind its last answer, which is noted as a whole
PLACES = [(name, place) for name in FORMATS for place in objects(golden(name)[0]) if place != LEFT_OUT]


@pytest.mark.parametrize(("name", "place"), PLACES, ids=str)
def test_an_unknown_key_anywhere_in_a_row_is_kept_refused_or_named(name, place):
    row, _ = golden(name)
    holder = row
    for key in place:
        holder = holder[key]
    holder["unheard_of"] = {"deep": "value"}
    try:
        found = mapped(name, row)
    except RowError:
        return
    assert "unheard_of" in repr(found)


def test_a_key_without_a_value_is_nothing():
    row = chat(Q, {"role": "assistant", "content": "a", "reasoning_content": None, "refusal": "", "audio": {}})
    assert mapped("messages", {**row, "id": None, "tags": []}) == mapped("messages", chat(Q, A))


def test_keys_inside_calls_tools_and_parts_are_named():
    call = {"index": 1, "id": "a", "function": {"name": "f", "arguments": "{}", "output": "x"}}
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}
    picture = {"type": "image_url", "image_url": {"url": "1.jpg", "detail": "low"}}
    row = chat(("user", [part, picture]), {"role": "assistant", "tool_calls": [call]}, ("tool", "r"), A)
    row["tools"] = [{"type": "function", "function": {"name": "f"}, "strict": True}]
    assert mapped("messages", row).unread == (
        "messages[].content[].cache_control", "messages[].content[].image_url.detail",
        "messages[].tool_calls[].index", "messages[].tool_calls[].output", "tools[].strict",
    )  # fmt: skip


def test_columns_and_fields_are_counted_with_the_place_of_the_first(make_config, run, tmp_path):
    thinking = {"role": "assistant", "content": "a", "thinking": "think hard"}
    rows = [{**chat(Q, A), "id": 1}, {**chat(("user", "r"), thinking), "id": 2, "\x1b[2J": 3}]
    _, report = run(make_config(rows))
    file = tmp_path / "rows.jsonl"
    assert report.lines()[1:] == [
        f"data: nothing reads these columns and keys: id (2 rows, the first: {file}:1), "
        f"'\\x1b[2J' (1 row, the first: {file}:2)",
        f"data: the template does not write these, so they are not trained: thinking (1 row, the first: {file}:2)",
    ]
    assert type(report).load(json.loads(json.dumps(report.values()))) == report


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ([Q, ("user", "r"), A], "neighbouring turns of the user are joined by a line end"),
        ([Q, A, ("user", "lost")], "turns behind the last answer are left out"),
        ([("system", "s"), ("system", "t"), Q, A], "conversations have several system texts"),
    ],
)
def test_turns_that_are_not_written_as_they_stand_are_counted(make_config, run, tmp_path, turns, line):
    _, report = run(make_config([chat(*turns)]))
    assert report.lines()[1:] == [f"data: {line}: 1 row, the first: {tmp_path / 'rows.jsonl'}:1"]


def test_a_system_column_is_the_system_message():
    for row in (chat(Q, A), said(("human", "q", {}), ("gpt", "a", {}))):
        name = next(iter(row)).replace("conversations", "sharegpt")
        assert mapped(name, {**row, "system": "Be brief."}).messages[0] == Message("system", "Be brief.")
    same = {**chat(("system", "Be brief."), Q, A), "system": "Be brief.\n"}
    assert mapped("messages", same) == mapped("messages", chat(("system", "Be brief."), Q, A))


def test_older_functions_and_calls_are_tools_and_calls():
    """OpenAI's API before `tools`."""
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    row = chat(Q, called, {"role": "function", "name": "f", "content": "r"}, A)
    found = mapped("messages", {**row, "functions": [TOOL]})
    assert found.tools == (TOOL,) and found.messages[1].calls == (ToolCall("f", {"x": 1}),)
    assert found.messages[2] == Message("tool", "r", extra={"name": "f"})


# preferences


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({**chat(Q, A), "chosen": "a", "rejected": "b"}, "to train without, take the columns out"),
        ({**said(("human", "q", {}), ("gpt", "a", {})), "chosen": {"from": "gpt", "value": "good"},
          "rejected": {"from": "gpt", "value": "bad"}}, "to train without, take the columns out"),
        ({"prompt": "q", "completion": "a", "label": False}, "to train the good ones alone: min: {label: 1}"),
        ({**chat(Q, A), "kto_tag": True}, "to train the good ones alone: min: {kto_tag: 1}"),
        ({"instruction": "q", "output": "a", "chosen": "a", "rejected": "b"}, "columns: {output: chosen}"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "columns: {completion: chosen}"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "columns: {output: chosen}"),
        ({"chosen": chat(Q, A)["messages"], "rejected": chat(Q, ("assistant", "b"))["messages"]},
         "format: messages and columns: {messages: chosen}"),
        ({"Prompt": "q", "Completion": "a", "Chosen": "a", "Rejected": "b"}, "to train without, take the columns out"),
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "columns: {completion: Chosen}"),
        ({"Chosen": chat(Q, A)["messages"], "Rejected": chat(Q, ("assistant", "b"))["messages"]},
         "format: messages and columns: {messages: Chosen}"),
        ({"Prompt": "q", "Completion": "a", "Label": False}, "to train the good ones alone: min: {Label: 1}"),
        ({"prompt": "q", "completion": "a", "label": 0.0}, "min: {label: 1}"),
        ({"prompt": "q", "completion": "a", "label": "1.0"}, "min: {label: 1}"),
        ({"question": "q", "answer": "a", "label": "False "}, "min: {label: 1}"),
        ({"question": "q", "answer": "a", "Label": "bad"}, "to train the good ones alone, take the others out"),
        ({**chat(Q, A), "label": 0}, "min: {label: 1}"),
        ({**chat(Q, A), "label": -1}, "min: {label: 1}"),
        ({**chat(Q, A), "desirable": False}, "min: {desirable: 1}"),
        ({**chat(Q, A), "isDesirable": 0}, "min: {isDesirable: 1}"),
        ({**chat(Q, A), "is_rejected": True}, "max: {is_rejected: 0}"),
        ({**chat(Q, A), "undesirable": "true"}, "max: {undesirable: 0}"),
        ({"question": "q", "answer": "a", "rejected_answer": "b"}, "to train without, take the columns out"),
        ({**said(("human", "q", {}), ("gpt", "a", {})), "RejectedAnswer": "b"}, "take the columns out"),
    ],
)  # fmt: skip
def test_preferences_are_refused_with_what_would_train_them(make_config, run, row, advice):
    with pytest.raises(ConfigError) as caught:
        run(make_config([row]))
    assert "preference data" in caught.value.message and advice in caught.value.message


@pytest.mark.parametrize(
    "row",
    [
        {"text": "A document.", "label": True},
        {"text": "A document.", "desirable": 0},
        {"question": "q", "answer": "a", "label": 7},
        {"question": "q", "answer": "a", "label": "harbours"},
        {"question": "q", "answer": "a", "image_label": 1},
        {"question": "q", "answer": "a", "preferred_language": "en"},
    ],
)
def test_a_class_is_no_preference(make_config, run, row):
    assert list(run(make_config([row]))[1].unread) == [list(row)[-1]]


@pytest.mark.parametrize(
    ("rows", "source", "trained"),
    [
        ([{"prompt": "q", "chosen": "good", "rejected": "bad"}], {"columns": {"completion": "chosen"}}, ["good"]),
        ([{"chosen": chat(Q, A)["messages"], "rejected": []}],
         {"format": "messages", "columns": {"messages": "chosen"}}, ["a"]),
        ([{"prompt": "q", "completion": word, "label": word == "good"} for word in ("bad", "good")],
         {"min": {"label": 1}}, ["good"]),
        ([{"prompt": "q", "completion": word, "label": str(word == "good")} for word in ("bad", "good")],
         {"min": {"label": 1}}, ["good"]),
        ([{"prompt": "q", "completion": word, "label": "0.0"} for word in ("bad", "good")],
         {"min": {"label": 0}}, ["bad", "good"]),
        ([{**chat(Q, ("assistant", word)), "is_rejected": word == "bad"} for word in ("bad", "good")],
         {"max": {"is_rejected": 0}}, ["good"]),
        ([{"Prompt": "q", "Chosen": "good", "Rejected": "bad"}], {"columns": {"completion": "Chosen"}}, ["good"]),
    ],
)  # fmt: skip
def test_the_advice_trains_the_better_answers(make_config, run, tmp_path, rows, source, trained):
    texts, report = run(make_config(rows, sources=[{"path": str(tmp_path / "rows.jsonl"), **source}]))
    assert [text.removesuffix("<|im_end|>") for text in texts] == trained
    assert report.unread.keys() <= {"rejected", "Rejected"}


# columns


def test_a_typo_in_a_column_that_may_be_absent_is_an_error(make_config, run, tmp_path):
    source = {"path": str(tmp_path / "rows.jsonl"), "columns": {"input": "contxt", "output": "response"}}
    row = {"instruction": "Q", "context": "IMPORTANT", "response": "A"}
    for rows in ([row], [row] * 1200):
        with pytest.raises(ConfigError, match="columns: got input: contxt, but no row has it; the rows have: instruc"):
            run(make_config(rows, sources=[source]))
    source["columns"]["input"] = "context"
    assert not run(make_config([row], sources=[source]))[1].unread


def test_a_column_that_only_later_rows_have_is_no_typo(make_config, run, tmp_path):
    source = {"path": str(tmp_path / "rows.jsonl"), "columns": {"system": "persona"}}
    rows = [{"question": "q", "answer": str(number)} for number in range(150)]
    _, report = run(make_config([*rows, {"question": "q", "answer": "a", "persona": "p"}], sources=[source]))
    assert report.kept == 151


@pytest.mark.parametrize("value", [None, 4, ["good", "bad"]])
def test_a_bad_first_row_is_about_its_value_and_can_be_skipped(make_config, run, value):
    rows = [{"instruction": "q", "input": "", "output": value}, {"instruction": "q", "input": "", "output": "good"}]
    with pytest.raises(ConfigError, match=r"rows.jsonl:1: output: got (null|4|a list), expected text$"):
        run(make_config(rows))
    texts, report = run(make_config(rows, bad_rows="skip"))
    assert texts == ["good<|im_end|>"] and report.counts["bad"] == 1


def test_empty_conversations_first_can_be_skipped(make_config, run):
    rows = [said(), said(("human", "q", {}), ("gpt", "a", {}))]
    with pytest.raises(ConfigError, match=r"rows.jsonl:1: conversations: got no turn of an assistant"):
        run(make_config(rows))
    assert run(make_config(rows, bad_rows="skip"))[1].kept == 1


def test_a_table_of_questions_and_answers_needs_no_format(make_config, run, tmp_path):
    (tmp_path / "rows.csv").write_text("Question,Answer,Source\nWho?,Me.,a book\n")
    texts, report = run(make_config([], sources=[{"path": str(tmp_path / "rows.csv")}]))
    assert texts == ["Me.<|im_end|>"] and list(report.formats.values()) == ["question_answer"]
    assert list(report.unread) == ["Source"]


def test_unknown_columns_are_told_with_the_known_formats(make_config, run):
    with pytest.raises(ConfigError, match=r"question_answer \(question, answer\), prompt_completion \(prompt, comp"):
        run(make_config([{"asked": "q", "told": "a"}]))


# templates


def test_functions_that_are_never_called_are_counted_where_the_template_has_none(make_config, run):
    texts, report = run(make_config([{**chat(Q, A), "tools": [TOOL]}], template="vicuna"))
    assert len(texts) == 1 and list(report.unwritten) == ["tools"]
    assert not run(make_config([{**chat(Q, A), "tools": [TOOL]}], template="chatml"))[1].unwritten


def test_a_template_without_channels_names_them(make_config, run):
    row = chat({"role": "system", "content": "[]", "name": "plugin"}, Q, A)
    assert list(run(make_config([row], template="chatml"))[1].unwritten) == ["name"]
    assert not run(make_config([row]))[1].unwritten


def own(make_config, rows, **data):
    return make_config(rows, template="tokenizer", **data)


def test_calls_that_the_tokenizers_template_does_not_write_are_refused(make_config, run):
    called = {"role": "assistant", "content": "", "tool_calls": CALLS}
    row = {**chat(Q, called, ("tool", "06:10"), ("assistant", "At ten past six.")), "tools": [TOOL]}
    with pytest.raises(ConfigError, match=r"messages\[1\].tool_calls: got a call that the tokenizer's t"):
        run(own(make_config, [row]), jinja=CHATML)
    texts, report = run(own(make_config, [row]), jinja=TEMPLATES["chatml"].jinja())
    assert "tide_times" in texts[0] and not report.unwritten


def test_functions_that_the_tokenizers_template_does_not_write_are_counted(make_config, run):
    _, report = run(own(make_config, [{**chat(Q, A), "tools": [TOOL]}]), jinja=CHATML)
    assert list(report.unwritten) == ["tools"]


def test_an_answer_that_the_tokenizers_template_does_not_write_is_refused(make_config, run):
    jinja = CHATML.replace("{{ m.content }}", "{% if 'x' not in m.content %}{{ m.content }}{% endif %}")
    rows = [chat(Q, A), chat(Q, ("assistant", "x"))]
    with pytest.raises(ConfigError, match=r"rows.jsonl:2: messages\[1\].content: got an answer whose text the tokeni"):
        run(own(make_config, rows), jinja=jinja)
    assert run(own(make_config, rows, bad_rows="skip"), jinja=jinja)[0] == ["a<|im_end|>"]


def test_a_message_that_the_tokenizers_template_passes_over_is_named(make_config, run):
    jinja = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    _, report = run(own(make_config, [chat(("system", "Be brief."), Q, A)]), jinja=jinja)
    assert list(report.unwritten) == ["content of system"]


def test_reasoning_is_trained_where_the_tokenizers_template_writes_it(make_config, run):
    row = chat(Q, {"role": "assistant", "content": "a", "reasoning_content": "think hard"})
    texts, report = run(own(make_config, [row]), jinja=REASONING)
    assert texts == ["think harda<|im_end|>"] and not report.unwritten
    _, report = run(own(make_config, [row]), jinja=CHATML)
    assert list(report.unwritten) == ["reasoning_content"]


def test_thoughts_that_the_tokenizers_template_leaves_out_are_named(make_config, run):
    jinja = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    row = chat(Q, ("assistant", "<think>hm</think>a"))
    texts, report = run(own(make_config, [row]), jinja=jinja)
    assert texts == ["a<|im_end|>"] and list(report.unwritten) == ["thoughts before </think>"]


# real rows


def test_no_call_of_the_real_rows_is_trained_as_an_empty_answer(make_config, run, real_internlm2):
    file = SHARED / "sft" / "glaive_toolcall_en_demo.json"
    if not file.exists():
        pytest.skip(f"no real rows: {file} is absent")
    config = own(make_config, [], sources=[{"path": str(file)}], bad_rows="skip")
    rows = json.loads(file.read_text(encoding="utf-8"))
    calling = sum(any(turn["from"] == "function_call" for turn in row["conversations"]) for row in rows)
    texts, report = run(config, jinja=CHATML)
    assert report.counts["bad"] == calling and not any(text.startswith("<|im_end|>") for text in texts)
    assert not any("<|im_end|><|im_end|>" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("02-sharegpt", ""),
        ("02-train", ""),
        ("03-reasoning", "not trained: reasoning_content (1 row"),
        ("03-thinking", "not trained: thinking (1 row"),
        ("04-messages_system", ""),
        ("04-messages_functions", ""),
        ("17-joined", "neighbouring turns of the user"),
        ("17-user", "turns behind the last answer"),
        ("17-tool", "turns behind the last answer"),
    ],
)
def test_the_cases_of_real_reports(make_config, run, name, said):
    file = CASES / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"no cases: {file} is absent")
    texts, report = run(make_config([], sources=[{"path": str(file)}]))
    assert not any("BAD" in text for text in texts)
    assert said in "\n".join(report.lines()[1:]) and bool(said) == bool(report.lines()[1:])
