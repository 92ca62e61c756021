"""Counts and lengths of a mix."""

import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.mixing import Entry
from rlhf_jax.data.statistics import count_words, shared_prompts, source_statistics, statistics_table


def test_numbers_by_hand():
    entries = [Entry(0, Example("a b c", ("d e", "f"), ((0, 1),), (2.0,))),
               Entry(0, Example([{"role": "user", "content": "A b"}, {"role": "assistant", "content": "x"},
                                 {"role": "user", "content": "y"}], ("g", "h i j"), ((0, 1),), (1.0,))),
               Entry(0, Example("a b c", ("d e", "f g h i"), ((0, 1),)))]
    found = source_statistics(entries, count_words)
    assert found.pop("percentiles") == {  # of the lengths 3, 4, 3; 2, 1, 2; 1, 3, 4 and the margins 2, 1
        "prompt": [3.0, 3.0, 3.0, 3.5, 3.9], "chosen": [1.1, 1.5, 2.0, 2.0, 2.0],
        "rejected": [1.2, 2.0, 3.0, 3.5, 3.9], "margin": [1.05, 1.25, 1.5, 1.75, 1.95]}
    assert found == {"prompts": 2, "rows": 3, "prompt": pytest.approx(10 / 3, abs=1e-4),
                     "chosen": pytest.approx(5 / 3, abs=1e-4), "rejected": pytest.approx(8 / 3, abs=1e-4),
                     "chosen_longer": pytest.approx(1 / 3, abs=1e-4), "margin": 1.5}


def test_prompts_that_sources_share_are_counted_once_case_and_white_space_aside():
    prompts = [(0, "a"), (0, "b"), (0, "A "), (1, "a"), (1, "c"), (2, "d")]
    entries = [Entry(source, Example(prompt, ("x",))) for source, prompt in prompts]
    assert shared_prompts(entries, 3) == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]


def test_rows_without_pairs_and_none_at_all():
    sft = source_statistics([Entry(0, Example("a b", ("c",)))], count_words)
    assert (sft["chosen"], sft["rejected"], sft["chosen_longer"], sft["margin"]) == (1.0, None, None, None)
    assert list(sft["percentiles"]) == ["prompt", "chosen"]
    assert source_statistics([], count_words)["prompt"] is None
    assert source_statistics([], count_words)["percentiles"] == {}
    table = statistics_table([{"source": "x", "published": 115396, **sft}], "words")
    assert "| x | 1 | 1 | 115,396 | 2.0 | 1.0 |  |  |  |" in table
    assert "means in words" in table
