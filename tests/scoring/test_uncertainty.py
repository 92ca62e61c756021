"""The enhancer's arithmetic: limits in closed form, and the covariance as it grows."""

import numpy as np
import pytest

from rlhf_jax.scoring.uncertainty import projection, second_player, uncertainty, with_pairs

RNG = np.random.default_rng(0)
FEATURES, VALUES = RNG.normal(size=(6, 4)), np.array([3.0, 2.9, 2.0, 1.0, 0.5, -2.0])


def grown(pairs=30):
    return with_pairs(0.5 * np.eye(4), RNG.normal(size=(pairs, 4)))


def test_without_pairs_and_without_a_limit_it_is_the_farthest():
    farthest = 1 + np.argmax(np.linalg.norm(FEATURES[1:] - FEATURES[0], axis=1))
    assert second_player(FEATURES, VALUES, np.eye(4), None) == farthest
    assert second_player(FEATURES, VALUES, 7.0 * np.eye(4), 1e9) == farthest


def test_width_0_is_best_against_second_best():
    for seed in range(20):
        features = np.random.default_rng(seed).normal(size=(6, 4))
        assert second_player(features, VALUES, grown(), 0.0) == 1


@pytest.mark.parametrize(("width", "near"), [(0.05, 1), (0.1001, 1), (1.0, 2), (2.0, 3), (5.0, 5)])
def test_it_is_the_most_uncertain_of_those_that_are_near_the_best(width, near):
    features = np.arange(6)[:, None] * np.array([[1.0, 0.0]])  # the further down, the further away
    assert second_player(features, VALUES, np.eye(2), width) == near


def test_after_pairs_along_one_axis_it_chooses_the_other():
    features = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    values = np.array([3.0, 2.0, 1.0])
    assert second_player(features, values, np.eye(2), None) == 1
    after = with_pairs(np.eye(2), np.array([[2.0, 0.0]] * 5))
    np.testing.assert_array_equal(after, np.diag([21.0, 1.0]))
    np.testing.assert_allclose(uncertainty(features[1:], after), [2 / 21**0.5, 1.0])
    assert second_player(features, values, after, None) == 2


def test_uncertainty_is_the_norm_under_the_inverse():
    covariance, differences = grown(), FEATURES[1:] - FEATURES[0]
    expected = [np.sqrt(d @ np.linalg.inv(covariance) @ d) for d in differences]
    np.testing.assert_allclose(uncertainty(differences, covariance), expected, rtol=1e-10)


def test_eigenvalues_only_grow_and_no_pair_gets_less_certain():
    covariance, differences = np.eye(4), FEATURES[1:]
    for _ in range(5):
        more = with_pairs(covariance, RNG.normal(size=(3, 4)))
        assert np.all(np.linalg.eigvalsh(more) >= np.linalg.eigvalsh(covariance) - 1e-12)
        assert np.all(uncertainty(differences, more) <= uncertainty(differences, covariance) + 1e-12)
        covariance = more


def test_a_projection_is_seeded_keeps_lengths_and_leaves_few_numbers_alone():
    np.testing.assert_array_equal(projection(8, None, 3), np.eye(8))
    np.testing.assert_array_equal(projection(8, 8, 3), np.eye(8))
    first, again, other = projection(300, 128, 3), projection(300, 128, 3), projection(300, 128, 4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    vectors = RNG.normal(size=(50, 300))
    ratio = np.linalg.norm(vectors @ first, axis=1) / np.linalg.norm(vectors, axis=1)
    assert 0.95 < ratio.mean() < 1.05
