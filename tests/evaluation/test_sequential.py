"""The error rate that is stated holds over all looks; testing anew at that rate after each run errs far more often."""

import numpy as np
import pytest
import scipy.stats

from rlhf_jax.evaluation.sequential import nominal_level, p_values, verdict

RUNS, SERIES = 8, 20_000


def errors(level, scale):
    """Share of series of no difference, other ones than the level was found with, in which some look names a sign."""
    drawn = scale * np.random.default_rng(7).standard_normal((SERIES, RUNS))
    return float(np.mean(p_values(drawn).min(-1) <= level))


def test_p_values_are_those_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1.0, 6)
    expected = [scipy.stats.ttest_1samp(values[:count], 0).pvalue for count in range(2, 7)]
    np.testing.assert_allclose(p_values(values), expected, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_stated_error_rate_holds_whatever_the_spread(rate, scale):
    expected_noise = 4 * (rate * (1 - rate) / SERIES) ** 0.5
    assert errors(nominal_level(RUNS - 1, rate), scale) == pytest.approx(rate, abs=expected_noise)


def test_testing_at_the_rate_itself_after_each_run_errs_three_times_as_often():
    assert errors(0.05, 1.0) > 0.15


def test_one_look_is_an_ordinary_t_test():
    assert nominal_level(1, 0.05) == pytest.approx(0.05, abs=0.003)


def test_a_clear_difference_is_decided_early_and_by_its_sign():
    """The five seeds of the quickstart: +0.35 with a spread of 0.1."""
    seen = [0.31, 0.46, 0.25, 0.38, 0.35]
    decided = [verdict(seen[:count], RUNS, 0.05) for count in range(1, 6)]
    assert decided[0] == "open"
    assert decided[3] == "above"
    assert verdict([-x for x in seen], RUNS, 0.05) == "below"


def test_most_series_with_a_real_difference_end_before_the_last_seed():
    drawn = np.random.default_rng(3).normal(2.0, 1.0, (500, RUNS))
    stops = [next((n for n in range(2, RUNS + 1) if verdict(row[:n], RUNS, 0.05) != "open"), RUNS + 1)
             for row in drawn]
    assert np.mean(np.array(stops) <= RUNS) > 0.85
    assert np.mean(stops) < 6


def test_bad_series_are_refused():
    assert verdict([0.0, 0.0, 0.0], 4, 0.05) == "open"
    assert verdict([0.2, 0.2], 4, 0.05) == "above"
    with pytest.raises(ValueError, match="not finite"):
        verdict([0.1, float("nan")], 4, 0.05)
    with pytest.raises(ValueError, match="3 differences of at most 2 runs"):
        verdict([0.1, 0.2, 0.3], 2, 0.05)
