"""Weights that change how much a token or a pair counts before a preference loss is taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def ld_token_weights(position_in_response: Array, own_len: Array, shared_len: Array, alpha: float) -> Array:
    """Computes LD-DPO's token weights: 1 up to the length both responses reach, alpha beyond it, 0 past the own end.

    Sums of log-probabilities under these weights, for the policy and the reference alike, are what the loss then sees.

    Args:
      position_in_response: [...] 0 at the response's first token.
      own_len: token count of this response, broadcastable to [...].
      shared_len: min of the pair's two token counts, broadcastable to [...].
      alpha: 1 is plain DPO, 0 compares equally long heads only.

    Returns:
      [...] float32. Liu et al., arXiv 2409.06411.

    Raises:
      ValueError: alpha outside [0, 1].

    "Length Desensitization in Direct Preference Optimization" (2024).

    >>> ld_token_weights(jnp.arange(4), jnp.array(3), jnp.array(2), alpha=0.5)
    Array([1.0, 1.0, 0.5, 0.0], dtype=float32)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"ld_alpha={alpha} is outside [0, 1], so the longer response's tail would gain. Give 0 to 1.")
    position = position_in_response.astype(jnp.float32)
    tail = jnp.where(position < own_len.astype(jnp.float32), alpha, 0.0)
    return jnp.where(position < shared_len.astype(jnp.float32), 1.0, tail).astype(jnp.float32)


def wpo_weight(mean_adjusted_logp: Array) -> Array:
    """Computes WPO's weight of a response, exp of the token mean of log p(token) - log sum_v p(v)^2; no gradient.

    [...] to [...]. A pair counts with the product of its two responses' weights, near 1 where it is on-policy. (TRL
    0.24 clips that product at 1.) Zhou et al., arXiv 2406.11827, eq. 2.

    "WPO: Enhancing RLHF with Weighted Preference Optimization" (2024).

    >>> wpo_weight(jnp.array([0.0, -0.5]))
    Array([1.0, 0.6065], dtype=float32)
    """
    return jnp.exp(jax.lax.stop_gradient(mean_adjusted_logp))
