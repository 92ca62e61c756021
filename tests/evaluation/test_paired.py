"""Paired comparisons: McNemar and sign flips against scipy, Holm by hand, error rates by simulation."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rlhf_jax.evaluation.paired import compare_all, holm, sign_flip_p_value


@pytest.mark.parametrize(("won", "lost", "equal"), [(9, 1, 40), (30, 18, 3), (0, 6, 0), (5, 5, 9), (1, 0, 0)])
def test_of_accuracies_it_is_mcnemars_exact_test(won, lost, equal):
    differences = [1.0] * won + [-1.0] * lost + [0.0] * equal
    expected = min(1.0, 2 * scipy.stats.binom.cdf(min(won, lost), won + lost, 0.5))
    assert sign_flip_p_value(differences) == pytest.approx(expected, rel=1e-12)
    assert sign_flip_p_value(np.array(differences) * 0.3) == pytest.approx(expected, rel=1e-12)


def test_of_scores_it_is_all_ways_to_turn_the_signs_but_for_drawing():
    differences = np.array([0.4, -0.1, 0.9, 0.3, 0.35, -0.2, 0.6, 0.05, 0.45, -0.3])
    sums = np.array([abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=10)])
    exact = np.mean(sums >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
    assert sign_flip_p_value(-differences) == sign_flip_p_value(differences)
    assert sign_flip_p_value(np.zeros(5)) == 1.0


def test_nothing_is_a_certainty():
    assert sign_flip_p_value(np.linspace(1, 2, 5000)) == pytest.approx(1 / 10_001)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.longer
def test_with_nothing_to_find_one_in_twenty_is_found_also_with_many_rows_a_prompt():
    rng = np.random.default_rng(0)
    found = by_row = 0
    for seed in range(200):
        prompts = np.repeat(np.arange(30), 6)
        common = rng.normal(size=30)[prompts]  # what a prompt does to all its rows
        first, second = common + rng.normal(size=180), rng.normal(size=180)
        pair = {"a": first, "b": second}
        found += compare_all(pair, prompts.tolist(), seed)["a", "b"].p_value < 0.05
        by_row += sign_flip_p_value(first - second, seed) < 0.05
    assert 2 <= found <= 21  # 10 expected, standard error 3.1
    assert by_row > 30  # rows taken as independent err far more often


def test_every_two_are_compared_and_their_p_values_raised_together():
    rows = 60
    good, middling = np.ones(rows), np.r_[np.ones(30), np.zeros(30)]
    other = np.r_[np.ones(28), np.zeros(32)]
    found = compare_all({"good": good, "middling": middling, "other": other}, list(range(rows)))
    assert list(found) == [("good", "middling"), ("good", "other"), ("middling", "other")]
    first, last = found["good", "middling"], found["middling", "other"]
    assert first.difference.value == 0.5
    assert first.p_value == pytest.approx(2 * 0.5**30)
    assert first.adjusted == pytest.approx(2 * first.p_value)  # the second smallest of three
    assert last.p_value == last.adjusted == pytest.approx(0.5)  # the largest stays
    assert last.difference.low <= 0 <= last.difference.high


@pytest.mark.parametrize("differences", [[], [float("nan"), 1.0]])
def test_what_is_no_difference_is_refused(differences):
    with pytest.raises(ValueError, match="at least one"):
        sign_flip_p_value(differences)
