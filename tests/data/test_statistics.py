"""Counts and lengths of a mix."""

import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.mixing import Entry, single_pairs
from rlhf_jax.data.statistics import count_words, source_statistics, statistics_table, token_counter


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


@pytest.mark.parametrize(("source", "converter", "pairs", "means", "longer"), [
    ("hh-rlhf/helpful_train", "hh_rlhf", 1641, (114.0, 56.7, 43.3), 0.589),
    ("hh-rlhf/harmless_train", "hh_rlhf", 1600, (100.6, 37.9, 48.5), 0.429),
    ("webgpt/train", "webgpt", 460, (42.0, 140.1, 114.5), 0.661),
])
def test_golden_counts_of_the_shared_files(shared, real_tokenizer, source, converter, pairs, means, longer):
    examples, _ = load_examples(str(shared / f"preference/{source}.jsonl.gz"), "preference", converter=converter)
    entries = [Entry(0, single) for example in examples for single in single_pairs(example)]
    found = source_statistics(entries, token_counter(real_tokenizer("llama-3")))
    assert found["rows"] == pairs
    assert [found[name] for name in ("prompt", "chosen", "rejected")] == pytest.approx(means, abs=0.0501)
    assert found["chosen_longer"] == pytest.approx(longer, abs=5.1e-4)
