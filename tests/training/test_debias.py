import numpy as np
import pytest
from scipy.stats import spearmanr

from rlhf_jax.training.debias import ARMORM_GRID, THRESHOLD, Spearman, find_penalties, reward_transform

AT = 4


def rewards(loads=(0.2, 0.5, 0.8, 1.4, 1.0, -0.4), rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    verbosity = rng.normal(size=rows)
    return np.stack([verbosity if k == AT else load * verbosity + rng.normal(size=rows)
                     for k, load in enumerate(loads)], axis=1)


def test_rank_correlation_is_scipys():
    r = np.round(rewards(), 1)  # with ties
    for k in range(6):
        assert Spearman(r[:, AT])(r[:, k]) == pytest.approx(spearmanr(r[:, AT], r[:, k]).statistic, abs=1e-12)
    assert np.isnan(Spearman(r[:, AT])(np.ones(len(r))))


def test_transformed_rewards_follow_verbosity_no_more():
    """Fact 6 of the specification: M[4, 4] = 0, M[4, k] = -l_k, Spearman(r'_k, r_4) within 0.03."""
    r = rewards()
    found = find_penalties(r, AT)
    transform = reward_transform(found.penalties, AT)
    freed = r @ transform
    assert transform[AT, AT] == 0
    for k in range(6):
        if k != AT:
            assert transform[AT, k] == -found.penalties[k]
            assert abs(spearmanr(freed[:, k], r[:, AT]).statistic) <= THRESHOLD + 1e-9
            assert found.after[k] == pytest.approx(spearmanr(freed[:, k], r[:, AT]).statistic, abs=1e-12)
    assert (freed[:, AT] == 0).all()
    assert found.penalties[5] < 0 < found.penalties[0]
    assert found.missed(THRESHOLD + 1e-9, AT) == []


def test_the_smallest_penalty_is_taken():
    r = rewards()
    found = find_penalties(r, AT)
    for k in (0, 1, 2, 3, 5):
        less = r[:, k] - 0.999 * found.penalties[k] * r[:, AT]
        assert abs(spearmanr(less, r[:, AT]).statistic) > THRESHOLD


def test_the_published_grid_stops_short_and_says_so():
    r = rewards()
    found = find_penalties(r, AT, grid=ARMORM_GRID)
    assert set(found.penalties) <= {*ARMORM_GRID, 1.0}
    assert found.penalties[3] == 1.0
    assert found.after[3] > 0.1
    assert found.penalties[5] == 0
    assert found.missed(THRESHOLD, AT) == [3, 5]
    for k in (0, 1, 2):
        smaller = [l for l in ARMORM_GRID if l < found.penalties[k]]
        assert spearmanr(r[:, k] - smaller[-1] * r[:, AT], r[:, AT]).statistic > THRESHOLD
        assert found.after[k] <= THRESHOLD


def test_nothing_is_freed_of_a_constant():
    with pytest.raises(ValueError, match="one value in all 10 rows"):
        find_penalties(np.ones((10, 2)), 1)
    assert find_penalties(np.stack([np.ones(10), np.arange(10.0)], axis=1), 1).penalties[0] == 0
