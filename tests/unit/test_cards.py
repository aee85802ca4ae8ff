"""Cards of other packages that cannot be used are named, wherever the family is asked for."""

import pytest

from trainer.families import registry
from trainer.families.registry import CARDS, CardError, card_of, chat_card_of

MODULE = """from trainer.families.registry import CARDS
wrong = "no card"
other = CARDS["llama"]
"""
ENTRIES = """[launch.families]
gone = no_such_module_here:CARD
wrong = odd_cards:wrong
other = odd_cards:other
llama = odd_cards:wrong
"""


@pytest.fixture(autouse=True)
def _package(tmp_path, monkeypatch):
    folder = tmp_path / "odd-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "odd_cards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


@pytest.mark.parametrize(("kind", "why"), [
    ("gone", "no_such_module_here:CARD in launch.families: cannot be loaded: ModuleNotFoundError"),
    ("wrong", "odd_cards:wrong in launch.families: got str, allowed: a Card whose name is wrong"),
    ("other", "odd_cards:other in launch.families: got Card, allowed: a Card whose name is other")])
def test_a_card_that_cannot_be_used_is_named_with_its_place(kind, why):
    with pytest.raises(CardError, match=why):
        card_of(kind)


def test_a_name_of_ours_is_ours_and_an_unknown_one_nobodys():
    assert card_of("llama") is CARDS["llama"] and card_of("nobody") is None


def test_kin_chat_alike():
    assert chat_card_of("qwen3_moe") is CARDS["qwen3"] and card_of("qwen3_moe") is None
