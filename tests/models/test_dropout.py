"""Dropout: how many it takes, what it leaves, and that nothing is drawn twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.dropout import dropped


@pytest.mark.parametrize(("rate", "shape"), [(0.2, (400, 501)), (0.5, (3, 200, 256)), (0.9, (100_001,))])
def test_the_share_is_the_rate_and_the_mean_stays(rate, shape):
    """Odd and even widths; four standard deviations."""
    out = np.asarray(dropped(jax.random.key(0), jnp.ones(shape), rate), np.float64)
    size = out.size
    assert abs((out == 0).mean() - rate) < 4 * (rate * (1 - rate) / size) ** 0.5
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-4)  # 1 - rate to 1/65,536
    assert abs(out.mean() - 1) < 4 * (rate / (1 - rate) / size) ** 0.5


def test_neighbours_are_drawn_by_themselves():
    """The two halves of one random word, and numbers of neighbouring words."""
    out = np.asarray(dropped(jax.random.key(1), jnp.ones((300, 512)), 0.5)) > 0
    for step in (1, 2, 3):
        assert abs(np.corrcoef(out[:, :-step].ravel(), out[:, step:].ravel())[0, 1]) < 4 / out.size**0.5
        assert abs(np.corrcoef(out[:-step].ravel(), out[step:].ravel())[0, 1]) < 4 / out.size**0.5


@pytest.mark.parametrize("rate", [0.0, 1e-6])
def test_nothing_is_lost_at_a_rate_of_nothing(rate):
    x = jax.random.normal(jax.random.key(2), (64, 33))
    np.testing.assert_array_equal(dropped(jax.random.key(0), x, rate), x)


def test_what_is_drawn_is_the_same_under_jit_and_in_any_dtype():
    x = jnp.ones((8, 9))
    plain = dropped(jax.random.key(3), x, 0.3)
    np.testing.assert_array_equal(jax.jit(dropped)(jax.random.key(3), x, 0.3), plain)
    half = dropped(jax.random.key(3), x.astype(jnp.bfloat16), 0.3)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half > 0, plain > 0)
