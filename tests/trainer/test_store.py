"""Samples in files: what was written is what is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import store
from trainer.data.encode import IGNORED, Encoded
from trainer.data.sources import Place
from trainer.data.store import Samples, SampleWriter, ids_of, labels_of


@st.composite
def encoded(draw):
    ids = draw(st.lists(st.integers(0, 200_000), min_size=1, max_size=30))
    cuts = sorted(draw(st.sets(st.integers(0, len(ids)), max_size=6)))
    return Encoded("", ids, list(zip(cuts[::2], cuts[1::2], strict=False)), [])


@settings(max_examples=40)
@given(chats=st.lists(encoded(), min_size=1, max_size=12), flush=st.integers(1, 60))
def test_ids_labels_and_places_come_back(tmp_path_factory, chats, flush):
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch, SampleWriter(folder) as writer:
        patch.setattr(store, "FLUSH", flush)
        for number, chat in enumerate(chats):
            writer.add(number % 2, Place(f"file-{number % 3}.jsonl", 10**12 + number), chat)
        writer.close({"more": "日本"})
    samples = Samples(folder)
    assert [ids_of(one).tolist() for one in samples] == [chat.ids for chat in chats]
    assert [labels_of(one).tolist() for one in samples] == [chat.labels for chat in chats]
    assert [samples.place(number) for number in range(len(samples))] == [
        f"file-{number % 3}.jsonl:{10**12 + number}" for number in range(len(chats))
    ]
    assert samples.about["more"] == "日本"


def test_what_is_read_is_mapped_and_cannot_be_changed(tmp_path):
    with SampleWriter(tmp_path) as writer:
        writer.add(0, Place("a", 1), Encoded("", [5, 6, 7], [(1, 3)], []))
        writer.close({})
    sample = Samples(tmp_path)[0]
    assert isinstance(Samples(tmp_path).tokens, np.memmap)
    assert labels_of(sample).tolist() == [IGNORED, 6, 7]
    with pytest.raises(ValueError, match="read-only"):
        sample[0] = 1
