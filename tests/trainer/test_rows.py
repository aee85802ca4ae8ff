"""Which samples a run trains on and which it only measures: weights, the share apart, sources of its own."""

from collections import Counter

import pytest

from trainer.config.job import Data
from trainer.data.encode import Encoded
from trainer.data.rows import Rows, plan_rows
from trainer.data.sources import Place
from trainer.data.store import Samples, SampleWriter, ids_of


@pytest.fixture
def samples(tmp_path):
    """Two sources of 40 and 10 samples of 2 to 9 tokens, and one of 5 that only validates."""
    with SampleWriter(tmp_path) as writer:
        for number in range(55):
            source = 0 if number < 40 else 1 if number < 50 else 2
            ids = [number] * (2 + number % 8)
            writer.add(source, Place("rows.jsonl", number + 1), Encoded("", ids, [(1, len(ids))], []))
        writer.close({})
    return Samples(tmp_path)


def plan(samples, seed=1, weights=(1.0, 1.0), **data):
    sources = [{"path": f"{number}", "weight": weight} for number, weight in enumerate(weights)]
    found = plan_rows(samples, Data.model_validate({"sources": sources, "max_length": 12, **data}), seed)
    return [Rows(samples, found[f"{name}_members"], found[f"{name}_ends"]) for name in ("train", "validation")]


def test_packed_rows_hold_every_sample_once_and_know_their_length_and_origin(samples):
    train, validation = plan(samples)
    assert sorted(train.members) == list(range(50))
    assert [sum(map(len, row.samples)) for row in train] == train.lengths.tolist()
    assert max(train.lengths) <= 12 and len(train) < 50
    for number, row in enumerate(train):
        assert row.number == number
        assert row.origins == [f"rows.jsonl:{int(ids_of(sample)[0]) + 1}" for sample in row.samples]
    assert sorted(validation.members) == [50, 51, 52, 53, 54]


def test_without_packing_a_row_is_a_sample(samples):
    train, _ = plan(samples, pack=False)
    assert [len(row.samples) for row in train] == [1] * 50


@pytest.mark.parametrize(("weight", "counts"), [(0.5, {1: 20}), (2.0, {2: 40}), (1.25, {1: 30, 2: 10})])
def test_a_weight_is_a_multiple_of_the_sources_own_samples(samples, weight, counts):
    train, _ = plan(samples, weights=(weight, 1.0))
    taken = Counter(int(member) for member in train.members if member < 40)
    assert Counter(taken.values()) == counts
    assert sorted(member for member in train.members if member >= 40) == list(range(40, 50))


def test_the_choice_is_the_same_for_a_seed_and_another_source_does_not_change_it(samples):
    first = [sorted(part.members) for part in plan(samples, validation=0.3)]
    assert first == [sorted(part.members) for part in plan(samples, validation=0.3)]
    assert first != [sorted(part.members) for part in plan(samples, seed=2, validation=0.3)]
    other = [sorted(part.members) for part in plan(samples, weights=(1.0, 3.5), validation=0.3)]
    assert [sum(member < 40 for member in part) for part in other] == [
        sum(member < 40 for member in part) for part in first]  # fmt: skip


def test_what_is_validated_on_is_never_trained_on(samples):
    train, validation = plan(samples, weights=(2.5, 1.0), validation=0.2)
    assert not set(train.members) & set(validation.members)
    assert set(train.members) | set(validation.members) == set(range(55))
    assert len(set(validation.members) - set(range(50, 55))) in range(4, 20)
