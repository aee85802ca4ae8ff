"""The pipeline over files: what is kept, what is counted, what is refused."""

import json

import pytest

from trainer.data.pipeline import Pipeline
from trainer.data.report import Report
from trainer.data.store import Samples, SampleWriter, ids_of, labels_of
from trainer.errors import ConfigError


def chat(*answers, **more):
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer, **more}]
    return {"messages": messages}


@pytest.fixture
def run(tmp_path, small_tokenizer):
    """Runs the pipeline over a config; returns its samples and its report."""

    def go(config):
        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with SampleWriter(folder) as writer:
            report = Pipeline(config, small_tokenizer, tmp_path / "rejected.jsonl").run(writer)
            writer.close({})
        return Samples(folder), report

    return go


def texts(samples, tokenizer):
    return [tokenizer.decode(ids_of(one)) for one in samples]


def test_counts_what_it_keeps_and_what_it_leaves_out(make_config, run):
    rows = [chat("one"), chat("quiet", loss=False), chat("two <|im_end|> x"), chat("one")]
    samples, report = run(make_config(rows))
    assert (report.read, report.kept, [*report.formats.values()]) == (4, 3, ["messages"])
    assert {name: count for name, count in report.counts.items() if count} == {
        "untrained": 1, "escaped": 1, "duplicates": 1}  # fmt: skip
    assert report.tokens == sum(map(len, samples))
    assert report.trained_tokens == sum((labels_of(one) >= 0).sum() for one in samples)
    assert (
        "data: 1 conversations hold the text of a control token (a turn's end, a role); it was encoded as ordinary text"
        in report.lines()
    )
    assert Report.load(json.loads(json.dumps(report.values()))) == report


def test_keep_turns_drops_whole_trailing_turns_and_says_what_was_lost(make_config, run):
    """xtuner cuts at max_length, answer and all."""
    whole, _ = run(make_config([chat("short")]))
    samples, report = run(make_config([chat("short", "long " * 60)], max_length=60))
    assert report.counts["shortened"] == 1
    assert samples[0].tolist() == whole[0].tolist()[: len(samples[0])]
    assert labels_of(samples[0])[-1] >= 0  # the end token of the answer
    everything, _ = run(make_config([chat("short", "long " * 60)]))
    assert report.lost_tokens == len(everything[0]) - len(samples[0])


def test_a_first_turn_that_does_not_fit_is_left_out_and_counted(make_config, run):
    samples, report = run(make_config([chat("long " * 60), chat("fits")], max_length=60))
    assert (len(samples), report.counts["dropped"]) == (1, 1)


def test_overlong_error_names_file_and_line(make_config, run):
    with pytest.raises(ConfigError, match=r"rows.jsonl:2: got a conversation of \d+ tokens, expected at most 60"):
        run(make_config([chat("fits"), chat("long " * 60)], max_length=60, overlong="error"))


@pytest.mark.parametrize("rows", [[chat("long " * 60)], [chat("x", loss=False)]])
def test_nothing_left_is_an_error_not_a_crash(make_config, run, rows):
    """xtuner#336, #370: a set that is empty after filtering."""
    with pytest.raises(ConfigError, match="none of the 1 rows"):
        run(make_config(rows, max_length=60))


def test_bad_rows_are_told_all_at_once_by_line_and_field(make_config, run):
    rows = [chat("a"), {"messages": 3}, chat("b"), {"messages": [{"role": "king", "content": "x"}]}, {"x": 1}]
    with pytest.raises(ConfigError) as caught:
        run(make_config(rows))
    lines = caught.value.message.splitlines()
    assert [line.partition("rows.jsonl:")[2].split(":")[0] for line in lines] == ["2", "4", "5"]
    assert "messages[0].role: got text 'king', expected" in lines[1]
    assert "bad_rows: skip" in caught.value.hint


def test_after_a_bad_row_the_rest_of_a_large_set_is_not_read(make_config, run):
    rows = [{"messages": 3}, *[chat("a")] * 1500, {"messages": 4}]
    with pytest.raises(ConfigError) as caught:
        run(make_config(rows, format="messages"))
    assert len(caught.value.message.splitlines()) == 1


def test_skipped_rows_are_kept_whole_with_the_reason(make_config, run, tmp_path):
    """Nothing of the user's is lost: every row is a sample or in the file of rejects."""
    config = make_config([chat("a"), {"messages": 3}, chat("b")], bad_rows="skip")
    (path := tmp_path / "rows.jsonl").write_text(path.read_text() + '{"messages": [\n')
    _, report = run(config)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["row"]) for line in rejected] == [(2, {"messages": 3}), (4, None)]
    assert (report.read, report.kept, report.counts["bad"]) == (4, 2, 2)


def test_columns_that_belong_to_no_format_are_named(make_config, run):
    with pytest.raises(ConfigError, match=r"got columns question_text, answer_text, allowed: those of a known format"):
        run(make_config([{"question_text": "q", "answer_text": "a"}]))


def test_columns_under_other_names_are_read_by_a_map(make_config, run, tmp_path, small_tokenizer):
    source = {"path": str(tmp_path / "rows.jsonl"), "columns": {"instruction": "q", "output": "a"}}
    samples, report = run(make_config([{"q": "Who?", "a": "Me."}], sources=[source]))
    assert list(report.formats.values()) == ["alpaca"]
    assert "Who?" in texts(samples, small_tokenizer)[0]


def test_a_document_longer_than_a_row_becomes_pieces_and_loses_nothing(make_config, run, small_tokenizer):
    text = "The sky is blue on a clear day. " * 40
    whole, _ = run(make_config([{"text": text}]))
    pieces, report = run(make_config([{"text": text}], max_length=64))
    assert report.counts["split"] == 1 and len(pieces) > 3
    assert [token for piece in pieces for token in ids_of(piece).tolist()] == ids_of(whole[0]).tolist()
    assert small_tokenizer.decode(ids_of(whole[0])) == f"<s>{text}</s>"
    assert labels_of(whole[0])[-1] == small_tokenizer.eos_token_id


def test_missing_file_names_the_working_directory(make_config, run):
    with pytest.raises(ConfigError, match="working directory"):
        run(make_config([], sources=[{"path": "./nowhere.jsonl"}]))


def test_a_role_that_the_template_cannot_write_is_a_bad_row(make_config, run):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"}]}]  # fmt: skip
    with pytest.raises(ConfigError, match=r"rows.jsonl:1: messages\[1\].tool_calls: got"):
        run(make_config(rows, template="vicuna"))
