"""Dropout, of a gate's units and of what an adapter reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_PARTS = 1 << 16


def dropped(key: Array, x: Array, rate: Any) -> Array:
    """x without a random share `rate` of its numbers; what stays is divided by 1 - rate (Srivastava et al., JMLR 15,
    2014).

    Random bits are what this costs, so 16 decide over a number and not 32: the share that stays is the multiple of
    1/65,536 that is nearest to 1 - rate, by which it is divided, too.
    """
    kept = jnp.round((1 - jnp.asarray(rate, jnp.float32)) * _PARTS).astype(jnp.uint32)
    bits = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    bits = jnp.concatenate([bits % _PARTS, bits // _PARTS], axis=-1)[..., : x.shape[-1]]
    return jnp.where(bits < kept, x / (kept.astype(jnp.float32) / _PARTS).astype(x.dtype), 0)
