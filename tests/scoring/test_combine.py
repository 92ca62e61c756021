"""A sum of stored numbers: what it adds, what it lacks, and the scorer it may stand over."""

import pytest

from rlhf_jax.data.groups import text_group
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.scoring.combine import CombineScorer, weighted_sum

WEIGHTS = {"proxy/helpful": 0.75, "proxy/long": -0.5}


def group(*scores):
    return text_group("p", "q", [(f"answer {i}", some) for i, some in enumerate(scores)])


def rated(prompts, completions, **columns):
    return [None if text == "answer 1" else {"": 9.0, "helpful": 2.0, "long": float(text[-1])} for text in completions]


def test_it_adds_what_responses_carry_and_what_lacks_a_number_gets_none():
    assert weighted_sum({"proxy/helpful": 2.0, "proxy/long": 1.0}, WEIGHTS) == 1.0
    scorer = CombineScorer(WEIGHTS, name="sum")
    found = scorer.score([group({"proxy/helpful": 2.0, "proxy/long": 1.0}, {"proxy/helpful": 4.0}, {})])
    assert found == [[{"": 1.0}, None, None]]
    assert scorer.failures == {"no_proxy/long": 2, "no_proxy/helpful": 1}
    scorer.release()


def test_over_a_scorer_it_adds_that_ones_numbers_and_keeps_them():
    below = FunctionScorer(rated, name="proxy")
    scorer = CombineScorer({**WEIGHTS, "proxy": 0.1, "data": 1.0}, name="proxy", scorer=below, key="k")
    (found,) = scorer.score([group({"data": 3.0}, {"data": 3.0}, {"data": 4.0})])
    expected = {0: 0.9 + 1.5 + 3.0, 2: 0.9 + 1.5 - 1.0 + 4.0}
    assert found == [{"": pytest.approx(expected[0]), "helpful": 2.0, "long": 0.0}, None,
                     {"": pytest.approx(expected[2]), "helpful": 2.0, "long": 2.0}]
    assert scorer.failures == {"no_score": 1}
    assert scorer.key == f"k-{below.key}"
