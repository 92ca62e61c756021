"""What decoding remembers: keys and values in the compute dtype, in bfloat16, or in int8 with a scale a token and head.

Reading an int8 cache is folded into attention (`models.attention.decode_attention`): a score is multiplied by its key's
scale and a probability by its value's, so no dequantised copy of a cache exists.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from rlhf_jax.models import DecoderConfig
from rlhf_jax.models.attention import KeyValues

CacheDtype = Literal["auto", "float32", "bfloat16", "int8"]
"""How a cache is stored; "auto" is the compute dtype."""

_LARGEST = 127.0


def stored_dtype(cache_dtype: CacheDtype, compute: Any) -> Any:
    """The dtype that a cache's keys and values have in memory."""
    return jnp.dtype(compute if cache_dtype == "auto" else cache_dtype)


class LogpTolerance(NamedTuple):
    """How far sampled log-probs may lie from the trainer's own, in nats: the worst token, and the mean over tokens."""

    largest: float
    mean: float


_TOLERANCES = {"float32": LogpTolerance(1e-4, 1e-4), "bfloat16": LogpTolerance(0.5, 0.1),
               "int8": LogpTolerance(2.0, 0.2)}
"""By the coarser of what is computed in and what is cached. A model of 260 thousand parameters was seen to differ by
(2e-5, 1e-6), (0.4, 0.015) and (0.9, 0.035), one of 15 million by half as much in int8: docs/iteration.md."""


def logp_tolerance(cache_dtype: CacheDtype, compute: Any) -> LogpTolerance:
    """What rounding alone explains; another model's log-probs are further away than this in the mean."""
    dtypes = {jnp.dtype(compute).name, stored_dtype(cache_dtype, compute).name}
    return max(_TOLERANCES[name] for name in dtypes)


def empty_cache(config: DecoderConfig, rows: tuple[int, ...], capacity: int, dtype: Any) -> KeyValues:
    """Room for `capacity` tokens in each of `rows`, of every layer: k [L, *rows, K, Dh, capacity], and so on."""
    heads = (config.layers, *rows, config.kv_heads)
    scales = [jnp.zeros((*heads, capacity)) if dtype == jnp.int8 else None for _ in "kv"]
    return KeyValues(jnp.zeros((*heads, config.head_dim, capacity), dtype),
                     jnp.zeros((*heads, capacity, config.head_dim), dtype), *scales)


def quantized(x: Array, dtype: Any) -> tuple[Array, Array | None]:
    """x [..., Dh] as stored, and the scale [...] float32 to multiply an int8 by: symmetric, from the largest |x|."""
    if dtype != jnp.int8:
        return x.astype(dtype), None
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / _LARGEST
    return jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None]).astype(jnp.int8), scale


def write_prompts(cache: KeyValues, keys: Array, values: Array, slots: Array) -> KeyValues:
    """Stores whole prompts from their first token on; slots out of range are dropped.

    Args:
      cache: of prompts, k [L, P, K, Dh, S]. keys, values: [L, F, T, K, Dh] with T at most S. slots: [F] int32.
    """
    width = keys.shape[2]
    new = _stored(jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3), cache.k.dtype)
    new = new._replace(k=jnp.swapaxes(new.k, 3, 4))
    return _put(cache, new, (slice(None), slots, slice(None), slice(width)),
                (slice(None), slots, slice(None), slice(None), slice(width)))


def write_tokens(cache: KeyValues, keys: Array, values: Array, at: tuple[Array, Array, Array]) -> KeyValues:
    """Stores one token of some lanes, each at its own place; what is out of range is dropped.

    Args:
      cache: of responses, k [L, P, n, K, Dh, U]. keys, values: [L, A, K, Dh]. at: slot, lane, place, each [A] int32.
    """
    slot, lane, place = at
    new = _stored(jnp.moveaxis(keys, 0, 1), jnp.moveaxis(values, 0, 1), cache.k.dtype)  # the order that indexing gives
    return _put(cache, new, (slice(None), slot, lane, slice(None), place),
                (slice(None), slot, lane, slice(None), slice(None), place))


def _stored(keys: Array, values: Array, dtype: Any) -> KeyValues:
    (k, k_scale), (v, v_scale) = quantized(keys, dtype), quantized(values, dtype)
    return KeyValues(k, v, k_scale, v_scale)


def _put(cache: KeyValues, new: KeyValues, at: Any, keys_at: Any) -> KeyValues:
    """Writes `new` where `at` says in values and scales, and `keys_at` in keys, whose positions come last."""
    scales = (None if old is None or x is None else old.at[at].set(x, mode="drop")
              for old, x in zip(cache[2:], new[2:], strict=True))
    return KeyValues(cache.k.at[keys_at].set(new.k, mode="drop"), cache.v.at[at].set(new.v, mode="drop"), *scales)


def first(cache: KeyValues, depth: int) -> KeyValues:
    """The first `depth` positions."""
    scales = (None if x is None else x[..., :depth] for x in (cache.k_scale, cache.v_scale))
    return KeyValues(cache.k[..., :depth], cache.v[..., :depth, :], *scales)
