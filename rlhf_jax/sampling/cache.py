"""What decoding remembers: keys and values in the compute dtype, in bfloat16, or in int8 with a scale a token and head.

Reading an int8 cache is folded into attention (`models.attention.decode_attention`): a score is multiplied by its key's
scale and a probability by its value's, so no dequantised copy of a cache exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.config.sampling import StoredDtype
from rlhf_jax.models import DecoderConfig
from rlhf_jax.models.attention import KeyValues
from rlhf_jax.models.int8 import int8_rows


def stored_dtype(stored: StoredDtype, compute: Any) -> Any:
    """The dtype that a cache's keys and values, or the weights that decoding reads, have in memory."""
    return jnp.dtype(compute if stored == "auto" else stored)


class Spans(NamedTuple):
    """What each row sees of its prompt, of what its lane wrote before this block, and in it: places [first, end).

    Each is a pair of [A] int32; a lane that is idle sees nothing.
    """

    prompt: tuple[Array, Array]
    suffix: tuple[Array, Array]
    recent: tuple[Array, Array]


class Caches(NamedTuple):
    """Of all layers: prompt k [L, P, K, Dh, S], pages of suffixes k [L, N, K, Dh, PAGE], recent k [L, A, K, Dh, R]."""

    prompt: KeyValues
    suffix: KeyValues
    recent: KeyValues


class LogpTolerance(NamedTuple):
    """How far sampled log-probs may lie from the trainer's own, in nats: the worst token, and the mean over tokens."""

    largest: float
    mean: float


_TOLERANCES = {"float32": LogpTolerance(1e-4, 1e-4), "bfloat16": LogpTolerance(0.5, 0.1),
               "int8": LogpTolerance(2.0, 0.2)}
"""By the coarsest of what is computed in, what is cached and what weights are. A model of 260 thousand parameters was
seen to differ by (2e-5, 1e-6), (0.4, 0.015) and, with caches in int8, (0.9, 0.035), one of 15 million by half as much:
docs/iteration.md."""


def logp_tolerance(compute: Any, *stored: StoredDtype) -> LogpTolerance:
    """What rounding alone explains; another model's log-probs are further away than this in the mean.

    Args:
      compute: dtype. stored: of what decoding reads, caches and weights.
    """
    dtypes = {jnp.dtype(compute).name, *(stored_dtype(one, compute).name for one in stored)}
    return max(_TOLERANCES[name] for name in dtypes)


def empty_cache(config: DecoderConfig, rows: tuple[int, ...], capacity: int, dtype: Any) -> KeyValues:
    """Room for `capacity` tokens in each of `rows`, of every layer: k [L, *rows, K, Dh, capacity], and so on."""
    heads = (config.layers, *rows, config.kv_heads)
    scales = [jnp.zeros((*heads, capacity)) if dtype == jnp.int8 else None for _ in "kv"]
    return KeyValues(jnp.zeros((*heads, config.head_dim, capacity), dtype),
                     jnp.zeros((*heads, capacity, config.head_dim), dtype), *scales)


def quantized(x: Array, dtype: Any) -> tuple[Array, Array | None]:
    """x [..., Dh] as stored, and the scale [...] float32 to multiply an int8 by."""
    return int8_rows(x, (-1,)) if dtype == jnp.int8 else (x.astype(dtype), None)


def write_prompts(cache: KeyValues, keys: Array, values: Array, slots: Array) -> KeyValues:
    """Stores whole prompts from their first token on; slots out of range are dropped.

    Args:
      cache: of prompts, k [L, P, K, Dh, S]. keys, values: [L, F, T, K, Dh] with T at most S. slots: [F] int32.
    """
    width = keys.shape[2]
    new = _stored(jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3), cache.k.dtype)
    new = new._replace(k=jnp.swapaxes(new.k, 3, 4))

    def put(old: Array, new: Array, axis: int) -> Array:
        places = [slice(None)] * old.ndim
        places[axis] = slice(width)
        return old.at[:, slots, *places[2:]].set(new, mode="drop")

    return _by_position(put, cache, new)


def write_token(cache: KeyValues, keys: Array, values: Array, place: Array) -> KeyValues:
    """Stores one token of every row, all at one place.

    Args:
      cache: k [L, *rows, K, Dh, R]. keys, values: [L, *rows, K, Dh]. place: [] int32.
    """
    new = _stored(keys, values, cache.k.dtype)

    def put(old: Array, new: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.expand_dims(new, axis), place, axis)

    return _by_position(put, cache, new)


def append_tokens(cache: KeyValues, new: KeyValues, places: Array) -> KeyValues:
    """Stores R tokens of every lane, each lane's from its own place on.

    One lane after another, in place: a scatter over all of them makes XLA lay the whole cache out anew on TPUs, and
    back again. A lane with room for fewer than R is written from U - R on; it must be one that has ended.

    Args:
      cache: k [L, P, n, K, Dh, U]. new: k [L, P, n, K, Dh, R]. places: [P, n] int32.
    """
    lanes = places.shape[1]

    def one(i: Array, cache: KeyValues) -> KeyValues:
        slot, lane = i // lanes, i % lanes

        def put(old: Array, new: Array, axis: int) -> Array:
            first = [jnp.zeros((), jnp.int32)] * old.ndim
            first[1], first[2] = slot, lane
            piece = jax.lax.dynamic_slice(new, first, (new.shape[0], 1, 1, *new.shape[3:]))
            first[axis] = places[slot, lane]
            return jax.lax.dynamic_update_slice(old, piece, first)

        return _by_position(put, cache, new)

    return jax.lax.fori_loop(0, places.size, one, cache)


def scatter_pages(cache: KeyValues, new: KeyValues, places: Array, table: Array, written: Array) -> KeyValues:
    """Stores R tokens of every row in its pages, from its own place on: one scatter, which GPUs do in place.

    Args:
      cache: k [L, N, K, Dh, PAGE]. new: k [L, A, K, Dh, R]. places: [A] int32. table: [A, J] int32, pages of each row.
      written: [A] bool, rows that wrote; of the others, and beyond a row's last page, nothing is stored.
    """
    size = cache.k.shape[-1]
    position = places[:, None] + jnp.arange(new.k.shape[-1])  # [A, R]
    number = position // size
    page = jnp.take_along_axis(table, jnp.minimum(number, table.shape[1] - 1), axis=1)
    page = jnp.where(written[:, None] & (number < table.shape[1]), page, cache.k.shape[1])

    def put(old: Array, new: Array, axis: int) -> Array:
        index: list[Any] = [slice(None), page, *[slice(None)] * (old.ndim - 2)]
        index[axis] = position % size
        new = jnp.moveaxis(jnp.moveaxis(new, axis, 2), 0, 2)  # [A, R, L, ...]
        return old.at[tuple(index)].set(new, mode="drop", unique_indices=True)

    return _by_position(put, cache, new)


def store_pages(cache: KeyValues, new: KeyValues, places: Array, table: Array, written: Array) -> KeyValues:
    """What `scatter_pages` does, one row after another: TPUs lay a cache out anew for a scatter, and do this in place.

    A row's tokens lie in pages that follow each other. Each is read, changed and written before the next is read, since
    XLA would otherwise copy the cache for every row.
    """
    size, block, last = cache.k.shape[-1], new.k.shape[-1], table.shape[1] - 1
    most = 1 + -(-block // size)  # pages that a block may reach into

    def one(row: Array, cache: KeyValues) -> KeyValues:
        number, offset = places[row] // size, places[row] % size

        def put(old: Array, new: Array, axis: int) -> Array:
            axis = axis % old.ndim
            piece = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
            for part in range(most):
                at = table[row, jnp.minimum(number + part, last)]
                page = jax.lax.dynamic_slice_in_dim(old, at, 1, axis=1)
                wide = jax.lax.dynamic_update_slice_in_dim(jnp.concatenate([page] * most, axis), piece, offset, axis)
                reached = (number + part <= last) & (offset + block > part * size)
                page = jnp.where(written[row] & reached, jnp.split(wide, most, axis)[part], page)
                old = jax.lax.dynamic_update_slice_in_dim(old, page, at, axis=1)
            return old

        return _by_position(put, cache, new)

    return jax.lax.fori_loop(0, places.size, one, cache)


def _by_position(put: Callable[[Array, Array, int], Array], cache: KeyValues, new: KeyValues) -> KeyValues:
    """`put` applied to (stored, new, axis of the positions) of keys, values and scales."""
    scales = (None if old is None or x is None else put(old, x, -1)
              for old, x in zip(cache[2:], new[2:], strict=True))
    return KeyValues(put(cache.k, new.k, -1), put(cache.v, new.v, -2), *scales)


def _stored(keys: Array, values: Array, dtype: Any) -> KeyValues:
    (k, k_scale), (v, v_scale) = quantized(keys, dtype), quantized(values, dtype)
    return KeyValues(k, v, k_scale, v_scale)


def first(cache: KeyValues, depth: int) -> KeyValues:
    """The first `depth` positions."""
    scales = (None if x is None else x[..., :depth] for x in (cache.k_scale, cache.v_scale))
    return KeyValues(cache.k[..., :depth], cache.v[..., :depth, :], *scales)
