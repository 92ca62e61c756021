import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import (
    DIVERGENCES,
    LOSSES,
    PairLogps,
    alpha_divergence,
    f_divergence,
    forward_kl,
    js_divergence,
    reverse_kl,
)

U = jnp.asarray([-3.0, -0.5, 0.0, 1.0, 4.0])


def test_closed_forms():
    np.testing.assert_allclose(reverse_kl(U), U)
    t = np.exp(np.asarray(U, np.float64))  # of a ratio t the map is f'(t) - f'(1)
    np.testing.assert_allclose(forward_kl(U), 1 - 1 / t, rtol=1e-6)
    np.testing.assert_allclose(js_divergence(U), np.log(2 * t / (1 + t)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(alpha_divergence(U, 0.5), (t**-0.5 - 1) / -0.5, rtol=1e-6)


def test_alpha_zero_is_forward_kl_and_alpha_near_one_is_reverse_kl():
    np.testing.assert_array_equal(alpha_divergence(U, 0.0), forward_kl(U))
    with jax.enable_x64(True):
        near = alpha_divergence(U.astype(jnp.float64), 1.0 - 1e-6)
        np.testing.assert_allclose(near, np.asarray(U, np.float64), atol=1e-5)


DIVIDED = ("sigmoid_norm", "ipo")  # by each response's own length


@pytest.mark.parametrize("loss", DIVIDED)
@pytest.mark.parametrize(("name", "coef"), [*((name, 0.5) for name in DIVERGENCES), ("alpha_divergence", -2.0)])
def test_at_the_reference_lengths_change_neither_loss_nor_gradient(name, coef, loss):
    divergence = f_divergence(name, coef)

    def value(chosen, sizes):
        zeros = jnp.full(2, -7.0)
        pair = PairLogps(chosen, zeros, zeros, zeros, *map(jnp.asarray, sizes))
        return LOSSES[loss].function(pair, beta=0.3, divergence=divergence)

    at, lengths = jnp.full(2, -7.0), ([5.0, 40.0], [40.0, 5.0])
    found = value(at, lengths)
    np.testing.assert_allclose(found, value(at, ([9.0, 9.0], [9.0, 9.0])), rtol=1e-6)
    assert found[0] == found[1]
    slope = jax.grad(lambda x: value(x, lengths).sum())(at)
    np.testing.assert_allclose(slope * jnp.asarray(lengths[0]), slope[0] * 5.0, rtol=1e-5)
    plain = LOSSES[loss].function(PairLogps(at, at, at, at, *map(jnp.asarray, lengths)), beta=0.3)
    np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_increasing_and_finite_with_finite_slope_far_out(name):
    s = f_divergence(name)
    assert np.all(np.diff(s(U)) > 0)
    far = jnp.asarray([-1e4, -170.0, 170.0, 1e4])
    assert np.all(np.isfinite(s(far)))
    assert np.all(np.isfinite(jax.vmap(jax.grad(s))(far)))


def test_coefficient_is_read_by_alpha_divergence():
    first, second = (f_divergence("alpha_divergence", coef)(U) for coef in (0.5, 0.25))
    assert not np.allclose(first, second)


def test_unknown_name_and_coefficient_one_are_errors():
    with pytest.raises(ValueError, match=r"'kl' is not a known divergence.*reverse_kl, forward_kl"):
        f_divergence("kl")
    with pytest.raises(ValueError, match=r"f_alpha_divergence_coef=1.0 divides by zero.*reverse_kl"):
        f_divergence("alpha_divergence", 1.0)
