"""Dropout, of a gate's units and of what an adapter reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def dropped(key: Array, x: Array, rate: Any) -> Array:
    """x without a random share `rate` of its numbers; what stays is divided by 1 - rate (Srivastava et al., JMLR 15,
    2014)."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)
