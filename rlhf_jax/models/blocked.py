"""Attention that visits only the blocks some query needs, and never holds a [T, T] array: for a single CPU device.

A packed row holds many short branches, so most of its [T, T] scores are masked. Queries are taken a block at a time;
for each, the key blocks that it can see are visited one after another under a running softmax (Milakov and Gimelshein,
arXiv 1805.02867; Dao et al., arXiv 2205.14135). The backward pass recomputes the scores block by block.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from rlhf_jax.models.attention import MASKED, RowAttention, RowIds, packed_mask

RESULTS = "blocked_attention"
"""Name of the output and of each query's scale, which the backward pass needs. `remat: dots` keeps what has it: on a
CPU running attention again takes a tenth of a step. On accelerators it takes a hundredth, and the memory matters more,
so the kernels for these have no such name."""


class Blocks(NamedTuple):
    """Which key blocks each query block needs, and who sees whom inside them; the same in all layers.

    keys: [B, Q, Q] int32, the needed key blocks of each query block first. counts: [B, Q] how many they are.
    seen: [B, Q, Q, C, C] bool.
    """

    keys: Array
    counts: Array
    seen: Array


class _Static(NamedTuple):
    scale: float
    softcap: float | None


def find_blocks(mask: Array, block: int) -> Blocks:
    """mask: [B, T, T] bool as `attention.packed_mask` gives it; T a multiple of `block`."""
    rows, length = mask.shape[:2]
    count = length // block
    seen = jnp.swapaxes(mask.reshape(rows, count, block, count, block), 2, 3)
    needed = jnp.any(seen, axis=(3, 4))
    return Blocks(jnp.argsort(~needed, axis=-1, stable=True).astype(jnp.int32),
                  jnp.sum(needed, axis=-1, dtype=jnp.int32), seen)


def blocked_attention(q: Array, k: Array, v: Array, blocks: Blocks, *, scale: float, softcap: float | None
                      ) -> Array:
    """What `attention.attention` computes, for q [B, T, H, Dh] and k, v [B, T, K, Dh]."""
    rows, _, heads, head_dim = q.shape
    kv_heads, count, block = k.shape[2], blocks.seen.shape[1], blocks.seen.shape[-1]
    shared = heads // kv_heads

    def by_head(x: Array) -> Array:  # [B, T, K, ..., Dh] -> [B, Q, K, (G) C, Dh]: what a block needs lies together
        x = x.reshape(rows, count, block, kv_heads, -1, head_dim)
        return jnp.transpose(x, (0, 1, 3, 4, 2, 5)).reshape(rows, count, kv_heads, -1, head_dim)

    out = _attend(by_head(q), by_head(k), by_head(v), blocks, _Static(scale, softcap))
    out = out.reshape(rows, count, kv_heads, shared, block, head_dim)
    return jnp.transpose(out, (0, 1, 4, 2, 3, 5)).reshape(q.shape)


def blocked_rows(block: int) -> RowAttention:
    """Visits only the pairs of blocks of so many tokens that hold something to see."""
    return RowAttention(partial(_find, block=block), blocked_attention)


def _find(ids: RowIds, window: int | None, *, block: int) -> Blocks:
    return find_blocks(packed_mask(ids, window), block)


def _at(x: Array, row: Array, block: Array) -> Array:
    return jax.lax.dynamic_slice(x, (row, block, *[0] * (x.ndim - 2)), (1, 1, *x.shape[2:]))[0, 0]


def _put(x: Array, value: Array, row: Array, block: Array) -> Array:
    return jax.lax.dynamic_update_slice(x, value[None, None].astype(x.dtype), (row, block, *[0] * (x.ndim - 2)))


def _seen(blocks: Blocks, row: Array, query: Array, key: Array) -> Array:
    """[C, C] bool of one pair of blocks."""
    block = blocks.seen.shape[-1]
    return jax.lax.dynamic_slice(blocks.seen, (row, query, key, 0, 0), (1, 1, 1, block, block))[0, 0, 0]


def _scores(q: Array, k: Array, seen: Array, how: _Static) -> tuple[Array, Array]:
    """[K, G C, C] float32 scores, masked; and the slope of the soft cap."""
    raw = jnp.einsum("kqd,kcd->kqc", q, k, preferred_element_type=jnp.float32) * how.scale
    squashed = raw if how.softcap is None else jnp.tanh(raw / how.softcap)
    capped = squashed if how.softcap is None else how.softcap * squashed
    by_query = capped.reshape(len(k), -1, *seen.shape)  # [K, G, C, C]
    slope = jnp.ones((), jnp.float32) if how.softcap is None else 1.0 - jnp.square(squashed)
    return jnp.where(seen, by_query, MASKED).reshape(raw.shape), slope


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, blocks: Blocks, how: _Static) -> Array:
    return _forward(q, k, v, blocks, how)[0]


def _forward(q: Array, k: Array, v: Array, blocks: Blocks, how: _Static) -> tuple[Array, Any]:
    rows, count = q.shape[:2]

    def query_block(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        row, at = index // count, index % count
        mine = _at(q, row, at)

        def key_block(number: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = running  # [K, G C], [K, G C], [K, G C, Dh]
            other = blocks.keys[row, at, number]
            scores, _ = _scores(mine, _at(k, row, other), _seen(blocks, row, at, other), how)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            probs = jnp.exp(scores - higher[..., None])
            keep = jnp.exp(top - higher)
            new = jnp.einsum("kqc,kcd->kqd", probs.astype(v.dtype), _at(v, row, other),
                             preferred_element_type=jnp.float32)
            return higher, total * keep + jnp.sum(probs, axis=-1), out * keep[..., None] + new

        start = jnp.full(mine.shape[:-1], MASKED), jnp.zeros(mine.shape[:-1]), jnp.zeros(mine.shape)
        top, total, out = jax.lax.fori_loop(0, blocks.counts[row, at], key_block, start)
        total = jnp.maximum(total, 1e-30)  # a padding query sees nothing
        return (_put(carry[0], out / total[..., None], row, at), _put(carry[1], top + jnp.log(total), row, at))

    empty = jnp.zeros(q.shape, v.dtype), jnp.zeros(q.shape[:-1], jnp.float32)
    out, norm = checkpoint_name(jax.lax.fori_loop(0, rows * count, query_block, empty), RESULTS)
    return out, (q, k, v, blocks, out, norm)


def _backward(how: _Static, saved: Any, grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, blocks, out, norm = saved
    rows, count = q.shape[:2]
    pull = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [B, Q, K, G C]
    wide = jnp.float32

    def query_block(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, at = index // count, index % count
        mine, to_out = _at(q, row, at), _at(grad, row, at)
        level, mean = _at(norm, row, at)[..., None], _at(pull, row, at)[..., None]

        def key_block(number: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_mine, to_k, to_v = running
            other = blocks.keys[row, at, number]
            keys, values = _at(k, row, other), _at(v, row, other)
            scores, slope = _scores(mine, keys, _seen(blocks, row, at, other), how)
            probs = jnp.exp(scores - level)  # [K, G C, C]
            to_probs = jnp.einsum("kqd,kcd->kqc", to_out, values, preferred_element_type=wide)
            to_scores = (probs * (to_probs - mean) * slope * how.scale).astype(q.dtype)
            to_values = jnp.einsum("kqc,kqd->kcd", probs.astype(v.dtype), to_out, preferred_element_type=wide)
            to_keys = jnp.einsum("kqc,kqd->kcd", to_scores, mine, preferred_element_type=wide)
            to_mine += jnp.einsum("kqc,kcd->kqd", to_scores, keys, preferred_element_type=wide)
            to_k = _put(to_k, _at(to_k, row, other) + to_keys, row, other)
            return to_mine, to_k, _put(to_v, _at(to_v, row, other) + to_values, row, other)

        start = jnp.zeros(mine.shape, wide), carry[1], carry[2]
        to_mine, to_k, to_v = jax.lax.fori_loop(0, blocks.counts[row, at], key_block, start)
        return _put(carry[0], to_mine, row, at), to_k, to_v

    empty = jnp.zeros(q.shape, q.dtype), jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
    to_q, to_k, to_v = jax.lax.fori_loop(0, rows * count, query_block, empty)
    return to_q, to_k.astype(k.dtype), to_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
