"""KL(policy || reference): estimators from tokens the policy sampled, and the exact value from both rows of logits.

J. Schulman, "Approximating KL divergence" (2020). With r = log reference - log policy of a sampled token, each
estimator is a value per token, [...] to [...], whose mean over samples estimates the divergence. As a loss on the
policy's own samples, k1 has zero gradient in expectation and k2 the gradient of the divergence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.divergence import EXPONENT_CAP


def kl_k1(logps: Array, ref_logps: Array) -> Array:
    """Computes k1 = -r, [...] nats per token: unbiased, of either sign, high variance (Schulman 2020)."""
    return logps - ref_logps


def kl_k2(logps: Array, ref_logps: Array) -> Array:
    """Computes k2 = r^2 / 2, [...] a token: biased, never negative, low variance near the reference (Schulman 2020)."""
    return 0.5 * jnp.square(ref_logps - logps)


def kl_k3(logps: Array, ref_logps: Array) -> Array:
    """Computes k3 = exp(r) - 1 - r, [...] a token: unbiased, never negative, lower variance (Schulman 2020).

    The exponent is capped to stay finite.
    """
    r = ref_logps - logps
    return jnp.expm1(jnp.minimum(r, EXPONENT_CAP)) - r


def kl_exact(logits: Array, ref_logits: Array) -> Array:
    """Computes sum_v p(v) (log p(v) - log q(v)) of two rows of logits; [..., V] to [...].

    Entries of -inf in `logits` (masked tokens) contribute 0.
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0.0, log_p - log_q, 0.0), axis=-1)
