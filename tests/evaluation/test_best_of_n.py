import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.evaluation import best_of_n_curve, best_of_n_kl, expected_best_of_n


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=7), st.data())
def test_equals_enumeration_of_all_subsets(pairs, data):
    n = data.draw(st.integers(1, len(pairs)))
    proxy, gold = zip(*pairs, strict=True)
    chosen = []
    for subset in itertools.combinations(range(len(pairs)), n):
        best = max(proxy[i] for i in subset)
        chosen.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
    assert expected_best_of_n(proxy, gold, n) == pytest.approx(np.mean(chosen), abs=1e-12)


def test_many_samples_do_not_overflow():
    values = np.arange(2000.0)
    assert expected_best_of_n(values, values, 1000) == pytest.approx(2000 * 1000 / 1001 + 1000 / 1001 - 1)


def test_kl_bound_of_known_sizes():
    expected = {1: 0.0, 2: 0.193, 4: 0.636, 8: 1.204, 16: 1.835, 64: 3.175, 256: 4.549}
    assert {n: round(best_of_n_kl(n), 3) for n in expected} == expected


def test_curve(make_group):
    groups = [make_group("a", proxy=[1, 2, 3], gold=[3, 2, 1]), make_group("b", proxy=[0, 0, 0], gold=[1, 1, 4]),
              make_group("c", proxy=[9, None, 9], gold=[9, 9, 9])]
    curve = best_of_n_curve(groups, "proxy", "gold", resamples=50)
    assert [point.n for point in curve] == [1, 2, 3]
    assert [point.proxy.count for point in curve] == [2, 2, 2]
    assert curve[0].proxy.value == pytest.approx(1.0)
    assert curve[2].proxy.value == pytest.approx(1.5)
    assert curve[2].gold.value == pytest.approx((1 + 2) / 2)
    assert curve[1].kl == pytest.approx(math.log(2) - 0.5)
    assert best_of_n_curve(groups, "proxy", max_n=2, resamples=50)[1].gold is None
    assert best_of_n_curve(groups, "proxy", max_n=2, resamples=50)[1].proxy.count == 3
    assert set(curve[0].to_json()) == {"n", "proxy", "gold", "kl"}


def test_too_few_scores(make_group):
    with pytest.raises(ValueError, match="no prompt has 4 responses scored by proxy"):
        best_of_n_curve([make_group("a", proxy=[1, 2])], "proxy", max_n=4)
    with pytest.raises(ValueError, match="n from 1 to the 2 samples"):
        expected_best_of_n([1, 2], [1, 2], 3)
