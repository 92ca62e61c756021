import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.evaluation import Estimate, across_seeds, mean_estimate, paired_difference, resampled_estimate
from rlhf_jax.evaluation.preference import preference_accuracy
from rlhf_jax.evaluation.statistics import by_cluster


def test_text_and_json_round_trip():
    estimate = Estimate(0.618, 0.02, 0.58, 0.66, 12)
    assert str(estimate) == "0.62 [0.58, 0.66]"
    assert Estimate.from_json(estimate.to_json()) == estimate
    alone = mean_estimate([0.5])
    assert alone.to_json() == {"value": 0.5, "standard_error": None, "low": None, "high": None, "count": 1}
    assert math.isnan(Estimate.from_json(alone.to_json()).low)
    assert str(alone) == "0.50"


def test_mean_matches_the_closed_form_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    estimate = mean_estimate(values, seed=1, resamples=1500)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / 20, rel=0.08)
    assert estimate.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.01)
    assert estimate == mean_estimate(values, seed=1, resamples=1500)
    assert estimate != mean_estimate(values, seed=2, resamples=1500)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    estimates = [mean_estimate(rng.exponential(size=60), seed=i, confidence=0.8, resamples=200) for i in range(200)]
    assert 0.70 < np.mean([e.low <= 1 <= e.high for e in estimates]) < 0.88


def normal(rng, prompts):
    return rng.normal(size=prompts), None, 0.0


def rates(rng, prompts):
    """Shares of 8 comparisons won; they pile up near 1."""
    return rng.binomial(8, rng.beta(3, 1, prompts)) / 8, None, 0.75


def repeated(rng, prompts):
    """Rows of which several ask the same prompt."""
    names = np.repeat(np.arange(prompts), 1 + np.arange(prompts) % 4)
    return rng.normal(size=prompts)[names] + 0.3 * rng.normal(size=len(names)), names.tolist(), 0.0


@pytest.mark.longer
@pytest.mark.parametrize(("draw", "prompts"), [(normal, 3), (normal, 8), (rates, 8), (normal, 12), (repeated, 12)])
def test_intervals_of_few_prompts_cover_the_truth_as_often_as_those_of_many(draw, prompts):
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(400):  # so the share of a 95 % interval is 0.95 with a standard error of 0.011
        values, clusters, truth = draw(rng, prompts)
        estimate = mean_estimate(values, seed, resamples=500, clusters=clusters)
        covered.append(estimate.low <= truth <= estimate.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_few_units_have_students_interval():
    estimate = mean_estimate([1.0, 2.0, 4.0], resamples=20_000)
    error = np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert estimate.standard_error == pytest.approx(error, rel=0.02)
    assert estimate.high - estimate.value == pytest.approx(4.302653 * error, rel=0.02)


def test_the_standard_error_of_few_is_that_of_the_sample():
    values = np.random.default_rng(1).normal(size=8)
    error = mean_estimate(values, resamples=20_000).standard_error
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(8), rel=0.02)


def test_wider_confidence_is_a_wider_interval():
    values = np.random.default_rng(3).normal(size=50)
    narrow, wide = (mean_estimate(values, confidence=c, resamples=400) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_ratio_of_sums_moves_clusters_together():
    sums = np.array([[2.0, 1.0], [4.0, 4.0], [2.0, 0.0]])
    estimate = resampled_estimate(sums, lambda s, units: s[1] / s[0], resamples=100)
    assert estimate.value == pytest.approx(5 / 8)
    assert estimate.count == 3
    assert estimate.low < 5 / 8 < estimate.high


def test_paired_difference_sees_what_separate_means_hide():
    rng = np.random.default_rng(0)
    prompt = rng.normal(scale=10.0, size=100)
    difference = paired_difference(prompt + 0.5, prompt + rng.normal(scale=0.1, size=100), resamples=300)
    assert 0.4 < difference.low < difference.high < 0.6
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0, 2.0], [1.0])


def test_across_seeds_worked_by_hand():
    estimate = across_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.count) == (2.0, 3)
    assert estimate.standard_error == pytest.approx(1 / math.sqrt(3))
    assert estimate.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(across_seeds([1.0]).high)


@pytest.mark.parametrize(("values", "message"), [([], "at least one"), ([1.0, math.nan], "nan or infinite")])
def test_placeholders_are_refused(values, message):
    for routine in (mean_estimate, across_seeds):
        with pytest.raises(ValueError, match=message):
            routine(values)


@given(st.lists(st.floats(-100, 100), min_size=5, max_size=20))
def test_an_interval_lies_within_the_data(values):
    estimate = mean_estimate(values, resamples=50)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    if len(set(values)) == 1:
        assert estimate.low == estimate.high == estimate.value


def share(outcomes, clusters=None):
    """The estimate of a share of what went right."""
    columns = by_cluster(np.stack([np.ones(len(outcomes)), np.asarray(outcomes, float)], axis=1), clusters)
    return resampled_estimate(columns, lambda sums, units: sums[1] / sums[0], outcomes=True)


def test_few_outcomes_have_wilsons_interval():
    """5 of 5, 0 of 5 and 8 of 10, as statsmodels' proportion_confint(method="wilson") has them."""
    for right, count, low, high in ((5, 5, 0.5655, 1.0), (0, 5, 0.0, 0.4345), (8, 10, 0.4902, 0.9433)):
        found = share([1.0] * right + [0.0] * (count - right))
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert share([1.0] * 300).low == pytest.approx(0.9874, abs=1e-4)  # nor does one of many go to a point


def test_what_is_no_share_of_single_outcomes_has_no_such_interval():
    assert share([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]).low < 0
    assert mean_estimate([1.0] * 6).low == paired_difference([1.0] * 6, [0.0] * 6).low == 1.0
    sure = preference_accuracy(probabilities=[1.0] * 8).estimates
    assert (sure["nll"].high, sure["brier"].high) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    assert sure["accuracy"].low == pytest.approx(0.6756, abs=1e-4)
    few = paired_difference([1.0, 1.0], [0.5, 0.5])
    assert (few.value, math.isnan(few.low)) == (0.5, True)  # two that agree tell nothing of others
