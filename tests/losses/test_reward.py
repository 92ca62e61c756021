import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.losses import (
    average_orders,
    binary_cross_entropy,
    bradley_terry,
    centering,
    ensemble_scores,
    logexp,
    pairwise_preference,
    squared_error,
)

score = st.floats(-50.0, 50.0, width=32)
few = settings(max_examples=25, deadline=None)


def test_equal_rewards_give_log_two_and_only_differences_count():
    r = jnp.asarray([-3.0, 0.0, 8.0])
    np.testing.assert_allclose(bradley_terry(r, r), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(bradley_terry(r + 2.0, r), bradley_terry(r - 5.0, r - 7.0), rtol=1e-6)


def test_margin_shifts_the_gap():
    r, m = jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, 3.0])
    np.testing.assert_allclose(bradley_terry(r, -r, m), np.logaddexp(0.0, -(2 * r - m)), rtol=1e-5)
    np.testing.assert_allclose(bradley_terry(r, -r, 0.0 * m), bradley_terry(r, -r))


def test_logexp_equals_its_formula():
    r = jnp.asarray([1.0, -2.0])
    np.testing.assert_allclose(logexp(r, -r), np.log1p(np.exp(-2 * r)), rtol=1e-5)


def test_centering():
    np.testing.assert_allclose(centering(jnp.asarray([1.0, 2.0]), jnp.asarray([-1.0, 1.0])), [0.0, 9.0])


def test_gradients_are_finite_far_out():
    for gap in (-1e4, 1e4):
        value, grad = jax.value_and_grad(bradley_terry)(jnp.float32(gap), jnp.float32(-gap))
        assert np.isfinite(value)
        assert np.isfinite(grad)


@few
@given(score, score, score, score)
def test_preferences_complement_when_inputs_swap(a, b, c, d):
    a, b, c, d = (jnp.float32(x) for x in (a, b, c, d))
    two_way = jax.nn.softmax(jnp.stack([a, b]))
    np.testing.assert_allclose(pairwise_preference(a, b), two_way[0], atol=1e-6)
    p_ab, p_ba = pairwise_preference(a, b), pairwise_preference(c, d)
    forth, back = average_orders(p_ab, p_ba), average_orders(p_ba, p_ab)
    np.testing.assert_allclose(forth + back, 1.0, atol=1e-6)
    np.testing.assert_allclose(forth, (p_ab + (1.0 - p_ba)) / 2, atol=1e-6)


def test_pure_position_bias_averages_to_one_half():
    always_a = jnp.float32(0.97)
    np.testing.assert_allclose(average_orders(always_a, always_a), 0.5)


def test_binary_cross_entropy_is_minus_the_log_likelihood_of_the_label_and_stays_finite():
    x, y = jnp.array([-3.0, 0.5, 200.0, -200.0]), jnp.array([1.0, 0.25, 0.0, 1.0])
    p, few = 1 / (1 + np.exp(-np.asarray(x, np.float64))), np.asarray([1.0, 0.25])
    np.testing.assert_allclose(binary_cross_entropy(x, y)[:2], -few * np.log(p[:2]) - (1 - few) * np.log1p(-p[:2]),
                               rtol=1e-6)
    np.testing.assert_allclose(binary_cross_entropy(x, y)[2:], [200.0, 200.0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(binary_cross_entropy))(x, y), p - y, rtol=1e-5, atol=1e-6)


def test_squared_error_is_of_the_ratings_that_there_are():
    outputs, ratings = jnp.asarray([[0.5, 2.0], [1.0, 3.0]]), jnp.asarray([[0.0, np.nan], [1.5, np.nan]])
    errors, rated = squared_error(outputs, ratings)
    np.testing.assert_array_equal(errors, [[0.25, 0.0], [0.25, 0.0]])
    np.testing.assert_array_equal(rated, [[True, False], [True, False]])
    gradient = jax.grad(lambda x: squared_error(x, ratings)[0].sum())(outputs)
    np.testing.assert_array_equal(gradient, [[1.0, 0.0], [-1.0, 0.0]])  # a hole pulls nowhere, and spreads no NaN


def test_a_neutral_answer_counts_half_for_each_side():
    a, b, same = jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]), jnp.array([0.5, 3.0])
    weights = np.exp(np.stack([a, b, same]))
    expected = (weights[0] + weights[2] / 2) / weights.sum(axis=0)
    np.testing.assert_allclose(pairwise_preference(a, b, same), expected, rtol=1e-6)
    np.testing.assert_allclose(pairwise_preference(b, a, same), 1 - expected, rtol=1e-6)
    np.testing.assert_allclose(pairwise_preference(a, b, jnp.full(2, -1e9)), pairwise_preference(a, b),
                               rtol=1e-6)


def test_an_ensemble_by_hand():
    members = jnp.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    found = ensemble_scores(members, 0.5)
    np.testing.assert_allclose(found.mean, [3.0, 2.0])
    np.testing.assert_allclose(found.worst_case, [1.0, 2.0])
    np.testing.assert_allclose(found.std, [np.sqrt(8 / 3), 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.uncertainty_weighted, [3 - np.sqrt(8 / 3) / 2, 2.0], rtol=1e-6)
    assert ensemble_scores(members.astype(jnp.bfloat16)).mean.dtype == jnp.float32


def test_an_ensemble_has_a_gradient_where_its_members_agree():
    members = jnp.array([[1.0, 3.0], [2.0, 2.0]])
    found = jax.grad(lambda x: ensemble_scores(x, 0.5).uncertainty_weighted.sum())(members)
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.5, 0.5]])
