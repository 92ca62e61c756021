"""Counts and lengths of a mix."""

import numpy as np
import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.mixing import Entries
from rlhf_jax.data.statistics import count_words, shared_prompts, source_statistics, statistics_table, text_lengths


def statistics(*examples):
    entries = Entries.of([examples])
    return source_statistics(entries.rows, text_lengths(entries, count_words))


def test_numbers_by_hand():
    found = statistics(
        Example("a b c", ("d e", "f"), ((0, 1),), (2.0,)),
        Example([{"role": "user", "content": "A b"}, {"role": "assistant", "content": "x"},
                 {"role": "user", "content": "y"}], ("g", "h i j"), ((0, 1),), (1.0,)),
        Example("a b c", ("d e", "f g h i"), ((0, 1),)))
    assert found.pop("percentiles") == {  # of the lengths 3, 4, 3; 2, 1, 2; 1, 3, 4 and the margins 2, 1
        "prompt": [3.0, 3.0, 3.0, 3.5, 3.9], "chosen": [1.1, 1.5, 2.0, 2.0, 2.0],
        "rejected": [1.2, 2.0, 3.0, 3.5, 3.9], "margin": [1.05, 1.25, 1.5, 1.75, 1.95]}
    assert found == {"prompts": 2, "rows": 3, "prompt": pytest.approx(10 / 3, abs=1e-4),
                     "chosen": pytest.approx(5 / 3, abs=1e-4), "rejected": pytest.approx(8 / 3, abs=1e-4),
                     "chosen_longer": pytest.approx(1 / 3, abs=1e-4), "margin": 1.5}


def test_prompts_that_sources_share_are_counted_once_case_and_white_space_aside():
    sources = [[Example(prompt, ("x",)) for prompt in prompts] for prompts in (("a", "b", "A "), ("a", "c"), ("d",))]
    assert shared_prompts(Entries.of(sources).rows, 3) == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]


def test_lengths_are_in_the_order_of_the_rows_however_many_are_read_at_once(monkeypatch):
    graded = Example("a b", ("c", "d e", "f g h"), ((1, 0), (2, 0)))
    entries = Entries.of([[graded, Example("x", ("y z",))], [Example("", ("once upon a time",))]])
    entries = entries.at(np.array([3, 1, 0, 2]))
    expected = [[0, 4, np.nan], [2, 3, 1], [2, 2, 1], [1, 2, np.nan]]
    for block in (4096, 1):
        monkeypatch.setattr("rlhf_jax.data.statistics.BLOCK", block)
        np.testing.assert_array_equal(text_lengths(entries, count_words), expected)


def test_rows_without_pairs_and_none_at_all():
    sft = statistics(Example("a b", ("c",)))
    assert (sft["chosen"], sft["rejected"], sft["chosen_longer"], sft["margin"]) == (1.0, None, None, None)
    assert list(sft["percentiles"]) == ["prompt", "chosen"]
    assert statistics()["prompt"] is None
    assert statistics()["percentiles"] == {}
    table = statistics_table([{"source": "x", "published": 115396, **sft}], "words")
    assert "| x | 1 | 1 | 115,396 | 2.0 | 1.0 |  |  |  |" in table
    assert "means in words" in table
