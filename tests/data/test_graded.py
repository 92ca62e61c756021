import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.graded import pairs_from_scores


def test_worked_by_hand():
    assert pairs_from_scores([1.0, None, 4.0, 1.0]) == (((2, 0), (2, 3)), (3.0, 3.0))
    assert pairs_from_scores([1.0, None, 4.0, 1.0], "best_worst") == (((2, 3),), (3.0,))
    assert pairs_from_scores([2.0, 2.0]) == ((), ())
    assert pairs_from_scores([], "best_worst") == ((), ())


def test_unknown_rule_and_missing_generator():
    with pytest.raises(ValueError, match="known rules"):
        pairs_from_scores([1.0, 2.0], "best")
    with pytest.raises(ValueError, match="random generator"):
        pairs_from_scores([1.0, 2.0], "best_random")


@given(st.lists(st.none() | st.integers(0, 4).map(float), max_size=6), st.sampled_from([0.0, 1.0, 2.0]),
       st.sampled_from(["all", "best_worst", "best_random"]))
def test_every_pair_is_a_real_preference(scores, min_gap, rule):
    pairs, margins = pairs_from_scores(scores, rule, min_gap, np.random.default_rng(0))
    every, _ = pairs_from_scores(scores, "all", min_gap)
    present = [s for s in scores if s is not None]
    assert len(set(pairs)) == len(pairs) == len(margins)
    assert set(pairs) <= set(every)
    for (chosen, rejected), margin in zip(pairs, margins, strict=True):
        assert margin == scores[chosen] - scores[rejected] >= max(min_gap, 1e-9)
    if rule == "all":
        assert len(pairs) == sum(a - b > 0 and a - b >= min_gap for a in present for b in present)
    else:
        assert len(pairs) == min(len(every), 1) if not present or max(present) - min(present) < max(min_gap, 1) else 1
