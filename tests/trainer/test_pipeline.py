import pytest

from trainer.data.pipeline import encode_dataset, training_rows
from trainer.errors import ConfigError


def chat(*answers):
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def test_counts_what_it_leaves_out(make_config, small_tokenizer):
    rows = [chat("one"), {"messages": [{"role": "user", "content": "no answer"}]}, chat("two <|im_end|> x")]
    samples, report = encode_dataset(make_config(rows, format="messages"), small_tokenizer)
    assert (report.read, report.kept, report.without_answer, report.escaped) == (3, 2, 1, 1)
    assert report.tokens == sum(len(sample.input_ids) for sample in samples)
    assert any("special token" in line for line in report.lines(2048, packed=True))


def test_keep_turns_drops_whole_trailing_turns(make_config, small_tokenizer):
    long = chat("short", "long " * 60)
    whole, _ = encode_dataset(make_config([chat("short")], format="messages"), small_tokenizer)
    samples, report = encode_dataset(make_config([long], format="messages", max_length=60), small_tokenizer)
    assert report.shortened == 1
    assert samples[0].input_ids == whole[0].input_ids[: whole[0].turn_ends[0]]
    assert samples[0].labels[-1] == small_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_first_turn_that_does_not_fit_is_left_out_and_counted(make_config, small_tokenizer):
    rows = [chat("long " * 60), chat("fits")]
    samples, report = encode_dataset(make_config(rows, format="messages", max_length=60), small_tokenizer)
    assert (len(samples), report.too_long) == (1, 1)


def test_overlong_error_names_the_row(make_config, small_tokenizer):
    with pytest.raises(ConfigError, match=r"allowed: 60 \(data.max_length\)"):
        encode_dataset(
            make_config([chat("long " * 60)], format="messages", max_length=60, overlong="error"), small_tokenizer
        )


def test_nothing_left_is_an_error_not_a_crash(make_config, small_tokenizer):
    with pytest.raises(ConfigError, match="none of the 1 rows"):
        encode_dataset(make_config([chat("long " * 60)], format="messages", max_length=60), small_tokenizer)


def test_wrong_format_names_file_row_and_columns(make_config, small_tokenizer):
    with pytest.raises(ConfigError, match=r"rows.jsonl row 1: format alpaca: got columns messages"):
        encode_dataset(make_config([chat("x")], format="alpaca"), small_tokenizer)


def test_missing_file_names_the_working_directory(make_config, small_tokenizer):
    config = make_config([], format="messages", sources=[{"path": "./nowhere.jsonl"}])
    with pytest.raises(ConfigError, match="working directory"):
        encode_dataset(config, small_tokenizer)


def test_weight_repeats_and_samples_rows(make_config, small_tokenizer, tmp_path):
    rows = [chat(str(number)) for number in range(10)]
    config = make_config(rows, format="messages", sources=[{"path": str(tmp_path / "rows.jsonl"), "weight": 1.5}])
    samples, _ = encode_dataset(config, small_tokenizer)
    again, _ = encode_dataset(config, small_tokenizer)
    assert len(samples) == 15
    assert [sample.text for sample in samples] == [sample.text for sample in again]


def test_packed_rows_hold_every_sample_once(make_config, small_tokenizer):
    config = make_config([chat("word " * length) for length in range(1, 30)], format="messages", max_length=64)
    samples, report = encode_dataset(config, small_tokenizer)
    rows = training_rows(samples, config, report)
    assert [row.number for row in rows] == list(range(len(rows)))
    assert sorted(sample["input_ids"] for row in rows for sample in row.samples) == sorted(
        sample.input_ids for sample in samples
    )
    assert all(sum(len(sample["input_ids"]) for sample in row.samples) <= 64 for row in rows)
    origin = {tuple(sample.input_ids): sample.origin for sample in samples}
    assert all(row.origins == [origin[tuple(sample["input_ids"])] for sample in row.samples] for row in rows)
    assert samples[1].origin.endswith("rows.jsonl row 2")
