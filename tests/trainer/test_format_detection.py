"""The format of a row, known by its columns."""

import json

import pytest

from tests.trainer.test_formats import golden
from trainer.config.job import FORMATS
from trainer.data.formats.detect import detect_format

LIKE_ANOTHER = {
    "medical": "alpaca",
    "crime_kg_assistant": "input_output",
    "law_reference": "question_answer",
    "code_alpaca": "prompt_completion",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_known_by_its_columns_or_looks_like_one_that_reads_the_same(name):
    row, _ = golden(name)
    assert detect_format([row]) == LIKE_ANOTHER.get(name, name)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "q", "input": "", "output": "a", "text": "Below is an instruction"}, "alpaca"),
        ({"messages": [{"role": "user", "content": "q"}], "prompt": "q", "completion": "a"}, "messages"),
        ({"text": "### Human: q### Assistant: a"}, "guanaco"),
        ({"text": "### A heading\n", "url": "https://example.org", "timestamp": "2020"}, "text"),
        ({"question": "q", "response": "a"}, "stack_exchange"),
        ({"question": "q", "response": "a", "system_prompt": ""}, "openorca"),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}, "sharegpt"),
        ({"id": "1", "content": "a document"}, "wanjuan"),
        ({"instruction": "q", "response": "a", "category": "qa"}, "dolly"),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
         "prompt_completion"),
        ({"Question": "q", "ANSWER": "a"}, "question_answer"),
        ({"id": 7, "content": "a passage", "question": "q", "answer": "a"}, "question_answer"),
    ],
)
def test_the_more_particular_format_is_taken(row, name):
    assert detect_format([row]) == name


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "q", "completion": "a", "response": "b"},
        {"question": "q", "answer": "a", "response": "b"},
        {"question": "q", "answer": "a", "text": "b"},
        {"content": "a document"},
        {"role": "user", "content": "q", "id": "1"},
        {"chat": {"other": 1}},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ],
    ids=json.dumps,
)
def test_ambiguous_or_unknown_columns_are_no_format(row):
    assert detect_format([row]) is None


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "q", "input": "", "output": None}, "alpaca"),
        ({"instruction": "q", "input": "", "output": 4, "text": "Below is an instruction"}, "alpaca"),
        ({"instruction": "q", "input": "", "output": ["good", "bad"]}, "alpaca"),
        ({"question": "q", "answer": None}, "question_answer"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"from": "human", "value": "q"}]}, "messages"),
        ({"conversations": [], "text": "t"}, "sharegpt"),
        ({"conversations": ["q", "a"]}, "sharegpt"),
        ({"text": None}, "text"),
    ],
    ids=json.dumps,
)
def test_a_bad_value_does_not_change_the_format(row, name):
    assert detect_format([row]) == name


def test_most_of_the_first_rows_decide():
    question = {"question": "q", "answer": "a"}
    assert detect_format([{"text": "a title"}, question, {"other": 1}, question]) == "question_answer"
    assert detect_format([{"other": 1}, {}]) is None
