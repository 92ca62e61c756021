import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.losses import kl_exact, kl_k1, kl_k2, kl_k3

P = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
Q = jnp.log(jnp.asarray([0.4, 0.2, 0.4]))


def test_closed_forms():
    r = np.asarray(Q - P)
    np.testing.assert_allclose(kl_k1(P, Q), -r, rtol=1e-6)
    np.testing.assert_allclose(kl_k2(P, Q), r**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(kl_k3(P, Q), np.exp(r) - 1 - r, atol=1e-6)


def test_exact_equals_the_sum_for_unnormalised_logits_and_k1_k3_are_unbiased():
    p = np.exp(P)
    divergence = float(np.sum(p * (P - Q)))
    np.testing.assert_allclose(kl_exact(P + 3.0, Q - 1.0), divergence, rtol=1e-5)
    np.testing.assert_allclose(kl_exact(jnp.stack([P, Q]), jnp.stack([Q, Q])), [divergence, 0.0], atol=1e-7)
    for estimator in (kl_k1, kl_k3):
        np.testing.assert_allclose(np.sum(p * estimator(P, Q)), divergence, rtol=1e-5)


def test_gradients_on_own_samples():
    """Averaged over the policy, k1's gradient vanishes and k2's is that of the divergence (Schulman's remark)."""

    def expected(estimator):
        def value(logits):
            logps = jax.nn.log_softmax(logits)
            return jnp.sum(jnp.exp(P) * estimator(logps, Q))

        return jax.grad(value)(P)

    np.testing.assert_allclose(expected(kl_k1), 0.0, atol=1e-6)
    np.testing.assert_allclose(expected(kl_k2), jax.grad(kl_exact)(P, Q), atol=1e-6)


def test_masked_tokens_and_far_apart_policies_stay_finite():
    masked = jnp.asarray([0.0, 1.0, -jnp.inf])
    value, grads = jax.value_and_grad(kl_exact)(masked, masked)
    np.testing.assert_allclose(value, 0.0, atol=1e-7)
    assert np.all(np.isfinite(grads))
    far = jax.value_and_grad(kl_k3)(jnp.float32(-1e4), jnp.float32(0.0))
    assert np.all(np.isfinite(far))
