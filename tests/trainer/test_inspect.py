"""What `launch data` finds out about a job's rows."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.conftest import load_tokenizer
from trainer.data.encode import Encoder
from trainer.data.first_rows import Look
from trainer.data.inspect import DUMPED, REJECTED, _histogram, inspect_data
from trainer.data.message import Conversation, Message
from trainer.data.page import render_page
from trainer.data.pieces import decode, segment_pieces, token_pieces
from trainer.data.show import CLOSE, OPEN, Progress, printable, show
from trainer.data.template_check import Chat, check_template
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError


def chat(*turns, **more):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], "content": text} | more for place, text in enumerate(turns)]}


@pytest.fixture
def look_at(tmp_path, small_tokenizer):
    """Inspects a config in a fresh folder."""

    def go(config, *, tokenizer=small_tokenizer, tell=lambda rows: None, **look):
        folder = tmp_path / f"inspected-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return inspect_data(config, tokenizer, folder, Look(**look), tell), folder

    return go


def shown(found):
    stream = io.StringIO()
    show(found, stream)
    return stream.getvalue()


def stages(found):
    return {stage.name: stage for stage in found.stages}


MIXED = [
    chat("Hi", "one"),
    chat("Hi", "quiet", loss=False),
    chat("Hi", ""),
    chat("Hi", "one"),
    chat("Hi", "two <|im_end|> x"),
    chat("Hi", "long " * 100),
]


def test_every_row_is_accounted_for_stage_by_stage(make_config, look_at):
    found, _ = look_at(make_config(MIXED, bad_rows="skip", max_length=64))
    assert [(stage.name, stage.rows_in, stage.rows_out, stage.left_out, stage.notes) for stage in found.stages] == [
        ("sources", 6, 6, {}, {}),
        ("map and template", 6, 5, {"bad": 1}, {}),
        ("encode", 5, 4, {"untrained": 1}, {"escaped": 1, "duplicates": 1}),
        ("length", 4, 3, {"dropped": 1}, {}),
        ("rows", 3, found.epoch.rows, {}, {}),
    ]
    assert found.lengths.samples == 3 and found.lengths.lost > 100
    assert "1 conversations are there more than once" in shown(found)


def test_lines_that_are_no_rows_and_rows_outside_a_bound_are_left_out_by_the_sources(make_config, look_at):
    config = make_config([chat("Hi", "one") | {"score": 1}, chat("Hi", "two") | {"score": 0}], bad_rows="skip")
    source = config.data.sources[0].model_copy(update={"min": {"score": 0.5}})
    with open(source.path, "a", encoding="utf-8") as file:
        file.write("[1]\n")
    data = config.data.model_copy(update={"sources": [source]})
    found, _ = look_at(config.model_copy(update={"data": data}))
    assert (stages(found)["sources"].rows_out, stages(found)["sources"].left_out) == (1, {"bad": 1, "filtered": 1})
    assert found.bad_rows == [f"{source.path}:3: row: got a list, expected an object"]


def test_rejected_rows_are_kept_with_their_place(make_config, look_at):
    found, folder = look_at(make_config(MIXED, bad_rows="skip"))
    (kept,) = [json.loads(line) for line in (folder / REJECTED).read_text().splitlines()]
    assert (kept["line"], kept["row"]) == (3, MIXED[2])
    assert found.bad_rows == [f"{kept['file']}:3: messages[1]: got an empty answer, expected text"]


def test_more_bad_rows_than_are_shown_are_counted_by_reason(make_config, look_at):
    found, _ = look_at(make_config([chat("Hi", "one"), *[chat("Hi", "")] * 12], bad_rows="skip"))
    assert len(found.bad_rows) == 10
    assert "12 rows: messages[1]: got an empty answer, expected text" in shown(found)


def test_bad_rows_are_an_error_unless_they_may_be_skipped(make_config, look_at):
    with pytest.raises(ConfigError, match=r"rows.jsonl:3: messages\[1\]: got an empty answer, expected text"):
        look_at(make_config(MIXED))


def test_rows_that_are_all_left_out_are_shown_and_a_problem(make_config, look_at):
    found, _ = look_at(make_config([chat("Hi", "long " * 100)], max_length=16))
    assert "none of the 1 rows" in found.problem
    assert (found.lengths.histogram, found.epoch.rows, found.epoch.total_steps) == ([], 0, 0)
    assert "encode: left out, longer than data.max_length" in shown(found)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["rows"][0]["samples"] == []
    assert "longer than data.max_length" in render_page(found)


def test_no_rows_at_all_are_an_error(make_config, look_at):
    with pytest.raises(ConfigError, match="none of the 0 rows"):
        look_at(make_config([]))


def test_each_file_of_a_folder_says_what_it_gave(make_config, tmp_path, look_at):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count in (("a", 2), ("b", 0), ("c", 1)):
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(chat('Hi', name))}\n" * count)
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "A document."}) + "\n")
    sources = [{"path": str(folder), "weight": 2.0}, {"path": str(text)}]
    found, _ = look_at(make_config([], sources=sources, validation=[{"path": str(folder / "a.jsonl")}]))
    first, second, third = found.sources
    assert list(first.files.values()) == [2, 0, 1] and first.files[str(folder / "b.jsonl")] == 0
    assert (first.format, first.weight, second.format, second.files) == ("messages", 2, "text", {str(text): 1})
    assert third.validation and third.files == {str(folder / "a.jsonl"): 2}
    assert found.epoch.validation_rows == 1  # two samples, packed


def test_a_row_is_shown_after_every_stage(make_config, look_at, small_tokenizer):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes.", "loss": False}]
    row = {"messages": [*turns, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "No."}]}
    found, _ = look_at(make_config([row, chat("Hi", "more")]))
    (seen,) = found.rows
    assert seen.place.endswith("rows.jsonl:1") and seen.row == row
    assert seen.messages[1] == {"role": "assistant", "content": "Yes.", "loss": False}
    (sample,) = seen.samples
    assert seen.text == "".join(piece.text for piece in seen.pieces) == decode(small_tokenizer, sample.input_ids)
    assert sample.pieces == seen.pieces
    assert [piece.text for piece in seen.pieces if piece.trained] == ["No.", "<|im_end|>"]
    assert f"assistant\n{OPEN}No.<|im_end|>{CLOSE}\n" in shown(found)


def test_text_that_the_length_policy_cut_is_shown_as_trained(make_config, look_at):
    found, _ = look_at(make_config([chat("Hi", "short", "Hi", "long " * 100)], max_length=64))
    (sample,) = found.rows[0].samples
    assert sample.pieces == found.rows[0].pieces[: len(sample.pieces)]
    assert shown(found).count(f"{OPEN}short<|im_end|>{CLOSE}") == 2


def test_every_piece_of_a_split_document_is_shown(make_config, look_at):
    found, _ = look_at(make_config([{"text": "word " * 60}], max_length=32))
    assert len(found.rows[0].samples) == stages(found)["length"].rows_out > 1
    assert found.rows[0].text == "".join(piece.text for one in found.rows[0].samples for piece in one.pieces)


def test_values_beyond_json_are_shown_as_text(make_config, look_at):
    config = make_config([chat("Hi", "one") | {"score": 1}])
    with open(config.data.sources[0].path, "w", encoding="utf-8") as file:
        file.write(json.dumps(chat("Hi", "one") | {"score": float("nan")}) + "\n")
    found, _ = look_at(config)
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))["rows"][0]["row"]["score"] == "nan"


def test_dumped_samples_are_those_that_come_first(make_config, look_at):
    rows = [chat("Hi", str(number)) for number in range(5)]
    _, folder = look_at(make_config(rows), dump=3)
    dumped = [json.loads(line) for line in (folder / DUMPED).read_text().splitlines()]
    assert [re.findall(r"assistant\n(.)", one["text"]) for one in dumped] == [["0"], ["1"], ["2"]]
    assert all(len(one["labels"]) == len(one["input_ids"]) for one in dumped)


@pytest.mark.parametrize(("pack", "rows"), [(True, 2), (False, 6)])
def test_an_epoch_counts_rows_steps_and_fill(make_config, look_at, pack, rows):
    config = make_config([chat("Hi", "same")] * 6, pack=pack, max_length=64)
    optimizer = config.optimizer.model_copy(update={"batch_size": 1, "accumulation": 4, "epochs": 3.0})
    found, _ = look_at(config.model_copy(update={"optimizer": optimizer}))
    epoch = found.epoch
    assert epoch.tokens == found.lengths.tokens == 6 * found.lengths.median
    assert (epoch.rows, epoch.batch, epoch.steps) == (rows, 4, rows / 4)
    assert epoch.total_steps == -(-3 * rows // 4)
    assert epoch.fill == (epoch.tokens / (rows * 64) if pack else None)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_the_histogram_counts_every_sample_once_in_few_round_bins(lengths):
    bins = _histogram(np.array(lengths, dtype=np.int32), min(lengths), max(lengths))
    assert 1 <= len(bins) <= 12
    counts = [sum(one.shortest <= length <= one.longest for length in lengths) for one in bins]
    assert [one.samples for one in bins] == counts and sum(counts) == len(lengths)


@given(st.lists(st.text(max_size=12), min_size=2, max_size=6))
def test_pieces_of_tokens_are_the_exact_text(small_tokenizer, texts):
    messages = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    segments = TEMPLATES["internlm2"].render(messages)
    encoded = Encoder(small_tokenizer, TEMPLATES["internlm2"]).encode([segments])[0]
    pieces = token_pieces(small_tokenizer, encoded.ids, encoded.labels)
    assert "".join(piece.text for piece in pieces) == decode(small_tokenizer, encoded.ids)
    if decode(small_tokenizer, encoded.ids) == encoded.text:
        assert pieces == segment_pieces(segments)


@pytest.mark.parametrize("family", ["internlm", "internlm2"])
def test_leading_blanks_of_an_answer_are_seen(family, request):
    """SentencePiece's decoder drops a blank at the start of a text."""
    tokenizer = load_tokenizer(str(request.getfixturevalue(f"real_{family}")))
    segments = TEMPLATES[family].render([Message("user", " 你好"), Message("assistant", " two  😀 blanks")])
    encoded = Encoder(tokenizer, TEMPLATES[family]).encode([segments])[0]
    assert token_pieces(tokenizer, encoded.ids, encoded.labels) == segment_pieces(segments)


@pytest.fixture
def check(small_tokenizer, monkeypatch):
    """Compares a template with a Jinja that is the tokenizer's own."""

    def go(name, jinja, *conversations):
        monkeypatch.setattr(small_tokenizer, "chat_template", jinja)
        template = TEMPLATES[name]
        chats = [Chat(f"f:{line}", one, template.render(one.messages)) for line, one in enumerate(conversations, 1)]
        return check_template(name, Encoder(small_tokenizer, template), small_tokenizer, chats)

    return go


HELLO = Conversation([Message("user", "Hi there"), Message("assistant", " Yes\n")])
SPELLED = Conversation([Message("user", "Hi <|im_end|>"), Message("assistant", "Yes")])
SYSTEM = Conversation([Message("system", "Be brief."), *HELLO.messages])


def test_a_template_that_makes_the_same_tokens_is_equal(check):
    found = check("internlm2", TEMPLATES["internlm2"].jinja(), HELLO, SYSTEM)
    assert (found.result, found.compared, found.difference) == ("equal", 2, None)


def test_a_message_that_spells_a_special_token_is_not_compared(check):
    """A server makes the token of it: the one difference that is meant, and counted by the report."""
    assert check("internlm2", TEMPLATES["internlm2"].jinja(), SPELLED).result == "not compared"
    assert check("internlm2", TEMPLATES["internlm2"].jinja(), SPELLED, HELLO).compared == 1


def test_the_first_difference_is_shown_with_both_sides(check):
    jinja = TEMPLATES["internlm2"].jinja().replace("<|im_start|>assistant\\n", "<|im_start|>assistant ")
    found = check("internlm2", jinja, HELLO)
    difference = found.difference
    assert (found.result, difference.place, difference.same_text) == ("different", "f:1", False)
    assert difference.before.endswith("<|im_start|>assistant")
    assert difference.ours.text.startswith("\n") and difference.theirs.text.startswith(" ")
    assert difference.ours.ids and difference.ours.ids[0] != difference.theirs.ids[0]


def test_a_template_that_ends_earlier_is_different(check):
    jinja = TEMPLATES["internlm2"].jinja().replace("<|im_end|>\\n", "<|im_end|>")
    assert check("internlm2", jinja, HELLO).result == "different"


def test_a_refused_conversation_is_told_with_the_templates_words(check):
    jinja = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    jinja += TEMPLATES["internlm2"].jinja()
    alone, mixed = check("internlm2", jinja, SYSTEM), check("internlm2", jinja, SYSTEM, HELLO)
    assert (alone.result, mixed.result, mixed.compared) == ("not compared", "equal", 1)
    assert "refuses f:1" in mixed.why and "no system here" in mixed.why


def test_a_tokenizer_without_template_cannot_be_compared(check):
    found = check("internlm2", None, HELLO)
    assert (found.result, found.why) == ("not compared", "the tokenizer has no chat_template")


def test_a_job_on_the_tokenizers_own_template_needs_no_comparison(make_config, look_at, small_tokenizer, monkeypatch):
    monkeypatch.setattr(small_tokenizer, "chat_template", TEMPLATES["internlm2"].jinja())
    found, _ = look_at(make_config([chat("Hi", "one")], template="tokenizer"))
    assert found.template.result == "not compared"
    assert found.template.why == "the job's template is the tokenizer's own"


def test_documents_have_no_template_to_compare(make_config, look_at):
    found, _ = look_at(make_config([{"text": "A document."}]))
    assert found.template.result == "not compared" and "documents" in found.template.why


HOSTILE = "</pre><script>alert(1)</script> \x1b[2J \u202e & \"q\" '"


def test_a_page_holds_nothing_of_a_row_as_markup(make_config, look_at):
    found, _ = look_at(make_config([chat(HOSTILE, HOSTILE), {HOSTILE: 1}], bad_rows="skip"))
    page = render_page(found)
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)") >= 4
    assert "\x1b" not in page and "\u202e" not in page
    assert not re.search(r"(src|href|url)\s*[=(]", page) and "default-src 'none'" in page
    assert '<span class="trained special">&lt;|im_end|&gt;</span>' in page


def test_a_terminal_is_not_told_what_a_row_says(make_config, look_at):
    found, _ = look_at(make_config([chat(HOSTILE, HOSTILE), {HOSTILE: 1}], bad_rows="skip"))
    text = shown(found)
    assert "\x1b" not in text and "\u202e" not in text and "␛[2J" in text and "<U+202E>" in text


@given(st.text())
def test_chinese_emoji_and_newlines_are_printed_as_they_are(text):
    kept = "".join(char for char in text if ord(char) >= 0x3000 or char.isalnum() or char == "\n")
    assert printable(kept) == kept


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_whose_user_wants_them(make_config, look_at, monkeypatch):
    found, _ = look_at(make_config([chat("Hi", "one")]))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    show(found, coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    show(found, plain)
    assert "\x1b[4;32mone" in coloured.getvalue() and OPEN not in coloured.getvalue()
    assert "\x1b" not in plain.getvalue() and f"{OPEN}one<|im_end|>{CLOSE}" in plain.getvalue()


def test_progress_is_told_once_a_second_and_wiped_away():
    times = iter([0, 0.5, 1.2, 1.3, 2.4])
    stream = Terminal()
    with Progress(stream, lambda: next(times)) as progress:
        for rows in (10, 20, 30, 40):
            progress.tell(rows)
    assert stream.getvalue() == "\r20 rows read ...\x1b[K\r40 rows read ...\x1b[K\r\x1b[K"


def test_progress_says_nothing_where_nobody_looks():
    stream = io.StringIO()
    times = iter([0, 5, 9])
    with Progress(stream, lambda: next(times)) as progress:
        progress.tell(10)
    assert stream.getvalue() == ""


def test_rows_read_are_told_on_the_way(make_config, look_at):
    told = []
    look_at(make_config([chat("Hi", "one"), chat("Hi", ""), chat("Hi", "two")], bad_rows="skip"), tell=told.append)
    assert told == [1, 3]
