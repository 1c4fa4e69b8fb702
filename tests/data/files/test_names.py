from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from alexnet_dist.data.files.names import Names

TEXTS = ["a", "", "cat/ü 1.jpg", os.fsdecode(b"\xff.jpg"), "z" * 70_000, "shard!b"]


@pytest.mark.parametrize("texts", [[], TEXTS, [f"n{number}" for number in range(9000)]])
def test_names_are_a_sequence_of_texts(texts: list[str]) -> None:
    names = Names.of(iter(texts))
    assert list(names) == texts == [names[position] for position in range(len(texts))]
    assert names == texts
    assert names == tuple(texts)
    assert names != [*texts, "more"]
    assert names[1:4] == tuple(texts[1:4])
    assert [names[-1 - position] for position in range(len(texts))] == texts[::-1]
    assert pickle.loads(pickle.dumps(names)) == names
    with pytest.raises(IndexError):
        names[len(texts)]


def test_some_names_are_taken_in_any_order() -> None:
    texts = [f"{'x' * (number % 7)}{number}" for number in range(10_000)]
    positions = np.random.default_rng(0).integers(0, len(texts), 9000)
    for some in (positions, positions[:0], np.arange(len(texts))[::-1]):
        assert Names.of(texts).take(some) == [texts[position] for position in some.tolist()]
