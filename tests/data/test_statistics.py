"""Counts and lengths of a mix."""

import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.mixing import Entry
from rlhf_jax.data.statistics import count_words, source_statistics, statistics_table


def test_numbers_by_hand():
    entries = [Entry(0, Example("a b c", ("d e", "f"), ((0, 1),), (2.0,))),
               Entry(0, Example([{"role": "user", "content": "A b"}, {"role": "assistant", "content": "x"},
                                 {"role": "user", "content": "y"}], ("g", "h i j"), ((0, 1),), (1.0,))),
               Entry(0, Example("a b c", ("d e", "f g h i"), ((0, 1),)))]
    found = source_statistics(entries, count_words)
    assert found == {"prompts": 2, "rows": 3, "prompt": pytest.approx(10 / 3, abs=1e-4),
                     "chosen": pytest.approx(5 / 3, abs=1e-4), "rejected": pytest.approx(8 / 3, abs=1e-4),
                     "chosen_longer": pytest.approx(1 / 3, abs=1e-4), "margin": 1.5}


def test_rows_without_pairs_and_none_at_all():
    sft = source_statistics([Entry(0, Example("a b", ("c",)))], count_words)
    assert (sft["chosen"], sft["rejected"], sft["chosen_longer"], sft["margin"]) == (1.0, None, None, None)
    assert source_statistics([], count_words)["prompt"] is None
    table = statistics_table([{"source": "x", "published": 115396, **sft}], "words")
    assert "| x | 1 | 1 | 115,396 | 2.0 | 1.0 |  |  |  |" in table
    assert "means in words" in table
