import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses

MARGIN = jnp.asarray([0.7, -1.3, 4.0])


def bernoullis(pair, beta):
    a, d = losses.log_ratios(pair)
    q = 1.0 / (1.0 + np.exp(-beta * np.asarray(a - d, np.float64)))
    return q, 1.0 / (1.0 + np.exp(-np.asarray(MARGIN, np.float64)))


def test_closed_forms(appendix_a):
    pair = appendix_a()
    q, p = bernoullis(pair, 0.3)
    expected = {
        "rev_kl": -(p * np.log(q) + (1 - p) * np.log(1 - q)),
        "kl": q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)),
        "tv": np.abs(q - p),
        "hellinger": 0.5 * ((p**0.5 - q**0.5) ** 2 + ((1 - p) ** 0.5 - (1 - q) ** 0.5) ** 2),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(losses.LOSSES[name].function(pair, MARGIN, beta=0.3), values, rtol=1e-4, atol=1e-6)


def test_minimum_is_where_the_policy_agrees_with_the_rewards(appendix_a):
    pair = appendix_a()
    a, d = losses.log_ratios(pair)
    agreed = 0.1 * (a - d)
    p = 1.0 / (1.0 + np.exp(-np.asarray(agreed)))
    for loss in (losses.kl_loss, losses.tv_loss, losses.hellinger_loss):
        np.testing.assert_allclose(loss(pair, agreed), 0.0, atol=1e-6)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(losses.rev_kl_loss(pair, agreed), entropy, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rev_kl_with_hard_labels_is_dpo(sign, appendix_a):
    pair = appendix_a()
    hard = losses.rev_kl_loss(pair, jnp.full(3, sign * 100.0))
    a, d = losses.log_ratios(pair)
    np.testing.assert_allclose(hard, np.logaddexp(0.0, -sign * 0.1 * np.asarray(a - d)), rtol=1e-5)
