"""Kappa against an independent one on every pair in both ways round; bias of place by hand; intervals by prompt."""

import numpy as np
import pytest

from rlhf_jax.evaluation.agreement import agreement, position_bias


def verdicts(count, seed, ties=0.1):
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, 0.5, 1.0], count, p=[(1 - ties) / 2, ties, (1 - ties) / 2])


def test_kappa_is_that_of_cohen_with_every_pair_in_both_ways_round():
    a, b = verdicts(300, 0), verdicts(300, 1, ties=0.3)
    b[:150] = a[:150]
    first, second = (np.concatenate([x, 1 - x]) for x in (a, b))
    table = np.array([[np.mean((first == i) & (second == j)) for j in (0, 0.5, 1)] for i in (0, 0.5, 1)])
    chance = float(table.sum(0) @ table.sum(1))
    found = agreement(a, b)
    assert found["kappa"].value == pytest.approx((np.trace(table) - chance) / (1 - chance), abs=1e-12)
    assert found["agreement"].value == np.mean(a == b)
    assert found["kappa"].low < found["kappa"].value < found["kappa"].high


def test_the_same_verdicts_turned_round_have_the_same_kappa():
    a, b = verdicts(200, 2), verdicts(200, 3)
    turned = np.random.default_rng(4).random(200) < 0.5
    other = agreement(np.where(turned, 1 - a, a), np.where(turned, 1 - b, b))
    assert other["kappa"].value == agreement(a, b)["kappa"].value


def test_without_ties_kappa_is_twice_the_agreement_less_one_also_against_labels():
    a = verdicts(400, 5, ties=0.0)
    found = agreement(a, np.ones(400))
    assert found["kappa"].value == pytest.approx(2 * a.mean() - 1)
    assert agreement(a, a)["kappa"].value == 1.0


@pytest.mark.longer
def test_judges_that_know_nothing_of_each_other_are_at_zero_and_the_interval_covers_it():
    covered = 0
    for seed in range(60):
        a, b = verdicts(80, seed), verdicts(80, 1000 + seed)
        found = agreement(a, b, seed=seed)["kappa"]
        covered += found.low <= 0 <= found.high
    assert covered >= 52  # 57 expected, binomial standard error 1.7


def test_rows_of_one_prompt_are_one_unit():
    a, b = (np.repeat(verdicts(50, seed), 8) for seed in (6, 7))
    prompts = [i // 8 for i in range(400)]
    by_prompt, by_row = agreement(a, b, prompts)["kappa"], agreement(a, b)["kappa"]
    assert by_prompt.value == by_row.value
    assert by_prompt.standard_error > 2 * by_row.standard_error
    assert by_prompt.count == 50


def test_bias_of_place_by_hand():
    found = position_bias([(1.0, 1.0), (1.0, 0.0), (0.9, 0.4), (0.3, 0.2)])
    assert found["position/first"].value == pytest.approx((0.5 + 1.0 + 0.75 + 0.55) / 4)
    assert found["position/inconsistent"].value == 0.5
    assert position_bias([(0.5, 0.5)] * 3)["position/inconsistent"].value == 0.0


@pytest.mark.parametrize(("first", "second", "words"), [
    ([1.0], [1.0, 0.0], "same pairs"), ([], [], "at least one"), ([0.7], [1.0], r"a verdict is 0\.7"),
    ([0.5, 0.5], [0.5, 0.5], "every pair a tie")])
def test_what_are_no_verdicts_is_refused(first, second, words):
    with pytest.raises(ValueError, match=words):
        agreement(first, second)
