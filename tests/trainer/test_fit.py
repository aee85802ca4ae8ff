"""Samples longer than max_length, by policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.encode import Encoded
from trainer.data.truncation import OverlongError, fit

# a prompt of 3 tokens, an answer of 4, a prompt of 3, an answer of 5
CHAT = Encoded("text", list(range(15)), [(3, 7), (10, 15)], [7, 15])


def test_what_fits_is_kept_as_it_is():
    assert fit(CHAT, 15, "error", document=False) == ([CHAT], "")


def test_keep_turns_keeps_whole_answers():
    (kept,), done = fit(CHAT, 14, "keep_turns", document=False)
    assert (kept.ids, kept.spans, kept.turn_ends, done) == (list(range(7)), [(3, 7)], [7], "shortened")


def test_keep_turns_drops_what_has_no_whole_answer():
    assert fit(CHAT, 6, "keep_turns", document=False) == ([], "dropped")


def test_truncate_cuts_inside_an_answer_and_never_keeps_a_prompt_alone():
    (kept,), done = fit(CHAT, 12, "truncate", document=False)
    assert (kept.ids, kept.spans, done) == (list(range(12)), [(3, 7), (10, 12)], "truncated")
    assert fit(CHAT, 3, "truncate", document=False) == ([], "dropped")


def test_drop_and_error_say_so():
    assert fit(CHAT, 14, "drop", document=False) == ([], "dropped")
    with pytest.raises(OverlongError, match="got a conversation of 15 tokens, expected at most 14"):
        fit(CHAT, 14, "error", document=False)


@given(st.integers(2, 200), st.integers(2, 50), st.sampled_from(["keep_turns", "drop", "truncate", "error"]))
def test_a_long_document_loses_no_token_whatever_the_policy(length, limit, policy):
    document = Encoded("text", list(range(length)), [(1, length)], [])
    pieces, done = fit(document, limit, policy, document=True)
    assert [token for piece in pieces for token in piece.ids] == document.ids
    assert all(len(piece.ids) <= limit for piece in pieces)
    assert done == ("split" if length > limit else "")
