import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import ld_token_weights, wpo_weight


def test_ld_weights_are_one_to_the_shared_length_then_alpha_then_zero():
    positions = jnp.arange(6)[None]
    weights = ld_token_weights(positions, jnp.asarray([[5], [3]]), jnp.asarray([[3], [3]]), 0.25)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0.25, 0.25, 0], [1, 1, 1, 0, 0, 0]])


def test_ld_alpha_one_is_plain_and_zero_cuts_the_tail():
    positions, own, shared = jnp.arange(4), jnp.float32(4), jnp.float32(2)
    np.testing.assert_array_equal(ld_token_weights(positions, own, shared, 1.0), [1, 1, 1, 1])
    np.testing.assert_array_equal(ld_token_weights(positions, own, shared, 0.0), [1, 1, 0, 0])


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_ld_alpha_outside_its_range_is_an_error(alpha):
    with pytest.raises(ValueError, match=rf"ld_alpha={alpha} is outside \[0, 1\]"):
        ld_token_weights(jnp.arange(2), jnp.int32(2), jnp.int32(1), alpha)


def test_wpo_weight_is_one_for_a_uniform_policy_and_carries_no_gradient():
    logps = jnp.full((4,), -jnp.log(8.0))
    log_sum_p2 = jnp.full((4,), -jnp.log(8.0))
    np.testing.assert_allclose(wpo_weight(jnp.mean(logps - log_sum_p2)), 1.0)
    np.testing.assert_allclose(wpo_weight(jnp.float32(-2.0)), np.exp(-2.0), rtol=1e-6)
    assert jax.grad(wpo_weight)(-2.0) == 0.0
