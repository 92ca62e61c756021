"""ODIN's disentangling terms: one head takes the length, the other is freed of it (arXiv 2402.07319)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.shapes import check_one_shape

_TINY = 1e-12


def pearson(x: Array, y: Array, mask: Array) -> Array:
    """Computes the correlation of x [N] and y [N] over the entries that mask [N] bool keeps; a float32 scalar.

    0 where either does not vary: nothing then follows anything. Its gradient is finite there too.

    >>> some = jnp.array([True, True, True, False])
    >>> pearson(jnp.array([5.0, 8.0, 3.0, 9.0]), jnp.array([1.0, 2.0, 1.5, 9.0]), some)
    Array(0.59604, dtype=float32)
    """
    check_one_shape("pearson", x=x, y=y, mask=mask)
    weights = mask.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weights), 1.0)

    def centred(values: Array) -> Array:
        values = jnp.where(mask, values.astype(jnp.float32), 0.0)
        return (values - jnp.sum(values) / count) * weights

    a, b = centred(x), centred(y)
    varies = (jnp.sum(a * a) > 0.0) & (jnp.sum(b * b) > 0.0)
    sizes = jnp.sqrt(jnp.where(varies, jnp.sum(a * a), 1.0)) * jnp.sqrt(jnp.where(varies, jnp.sum(b * b), 1.0))
    return jnp.where(varies, jnp.sum(a * b) / sizes, 0.0)


def odin_length(lengths: Array, length_head: Array, quality_head: Array, mask: Array) -> Array:
    """Computes (1 - rho(length, r0)) + |rho(length, r1)|: one head shall follow the length, the other shall not.

    Args:
      lengths: [N] of the responses.
      length_head, quality_head: [N] outputs r0 and r1.
      mask: [N] bool.

    Returns:
      A scalar. The correlations are those of all N responses, so N is a whole batch. Chen et al., "ODIN: Disentangled
      Reward Mitigates Hacking in RLHF" (2024), arXiv 2402.07319, section 3.

    >>> length_head, quality_head = jnp.array([1.0, 2.0, 1.5]), jnp.array([0.5, 0.2, 0.4])
    >>> odin_length(jnp.array([5.0, 8.0, 3.0]), length_head, quality_head, jnp.array([True, True, True]))
    Array(1.1410, dtype=float32)
    """
    check_one_shape("odin_length", lengths=lengths, length_head=length_head, quality_head=quality_head, mask=mask)
    return 1.0 - pearson(lengths, length_head, mask) + jnp.abs(pearson(lengths, quality_head, mask))


def odin_orthogonality(heads: Array) -> Array:
    """Computes |<w0, w1>| of the two heads [2, D], each with its mean taken off and of length one; a scalar.

    Chen et al., "ODIN: Disentangled Reward Mitigates Hacking in RLHF" (2024), arXiv 2402.07319, section 3.

    >>> odin_orthogonality(jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
    Array(0.86603, dtype=float32)
    """
    centred = heads.astype(jnp.float32) - jnp.mean(heads.astype(jnp.float32), axis=1, keepdims=True)
    sizes = jnp.sqrt(jnp.sum(centred * centred, axis=1, keepdims=True) + _TINY)
    unit = centred / sizes
    return jnp.abs(jnp.sum(unit[0] * unit[1]))
