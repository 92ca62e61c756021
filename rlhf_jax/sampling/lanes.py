"""Attention of decoding by two Pallas-Triton kernels, for NVIDIA GPUs: what is read is what lanes see, once.

The first reads a prompt for several of its lanes at a time, the second what a lane has written itself and the new
token; the first hands its running softmax on to the second (Dao, arXiv 2307.08691). Caches are read where they lie, all
layers in one array, because a layer's slice would be a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.sharding import Mesh

from rlhf_jax.models import DecoderConfig
from rlhf_jax.models.attention import KeyValues
from rlhf_jax.models.triton import LOG2_E, MASKED, compiler_params, float32_dot, load

CHUNK = 64
"""Positions a program takes at a time. Caches whose depth is a multiple of it are read in whole lines."""
_LANES, _HEADS = 4, 16
"""Lanes of a program that reads a prompt, and the fewest rows of a matrix product: fewer heads are padded."""


class Spans(NamedTuple):
    """What each lane sees of its prompt, of what it wrote before this block, and in it: places [first, end).

    Each is a pair of [P, n] int32; a lane that is idle sees nothing.
    """

    prompt: tuple[Array, Array]
    suffix: tuple[Array, Array]
    recent: tuple[Array, Array]


class Caches(NamedTuple):
    """Of all layers: prompt k [L, P, K, Dh, S], suffix k [L, P, n, K, Dh, U], recent k [L, P, n, K, Dh, R]."""

    prompt: KeyValues
    suffix: KeyValues
    recent: KeyValues


class _How(NamedTuple):
    scale: float
    softcap: float | None


def kernel_for(mesh: Mesh, config: DecoderConfig, cache_dtype: Any) -> Callable[..., Array] | None:
    """`lanes_attention` on GPUs where it can read such a model's caches: no int8, heads of a size it has."""
    gpu = mesh.devices.flat[0].platform == "gpu"
    fits = cache_dtype != jnp.int8 and config.head_dim == pl.next_power_of_2(config.head_dim) >= 16
    return lanes_attention if gpu and fits else None


def lanes_attention(q: Array, k: Array, v: Array, caches: Caches, layer: Any, spans: Spans, *, scale: float,
                    softcap: float | None, interpret: bool = False) -> Array:
    """What `models.attention.decode_attention` computes.

    Args:
      q: [P, n, H, Dh], k, v: [P, n, K, Dh] of the new tokens.
      layer: [] int32, whose keys and values to read. scale, softcap: of the scores.

    Returns:
      [P, n, H, Dh].
    """
    prompts, lanes, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    shared = heads // kv_heads
    rows = max(_HEADS, pl.next_power_of_2(shared))
    padded = -(-lanes // _LANES) * _LANES
    how = _How(scale, softcap)
    by_head = jnp.swapaxes(q.reshape(prompts, lanes, kv_heads, shared, head_dim), 1, 2)
    by_head = jnp.pad(by_head, ((0, 0), (0, 0), (0, padded - lanes), (0, rows - shared), (0, 0)))
    which = jnp.reshape(jnp.asarray(layer, jnp.int32), 1)

    def numbers(x: Array) -> Array:  # [P, n] -> [P, padded]
        return jnp.pad(x, ((0, 0), (0, padded - lanes)))

    def call(kernel: Any, grid: tuple[int, ...], ins: list[Any], outs: Any, shapes: Any, name: str, warps: int) -> Any:
        return pl.pallas_call(partial(kernel, how=how), grid=grid, in_specs=ins, out_specs=outs, out_shape=shapes,
                              name=name, interpret=interpret, compiler_params=compiler_params(warps))

    def whole(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)

    def lane_rows(count: int) -> pl.BlockSpec:  # of [P, K, padded, rows, Dh]
        return pl.BlockSpec((None, None, count, rows, head_dim), lambda p, h, i: (p, h, i, 0, 0))

    def lane_numbers(count: int) -> pl.BlockSpec:  # of [P, K, padded, rows]
        return pl.BlockSpec((None, None, count, rows), lambda p, h, i: (p, h, i, 0))

    wide = jax.ShapeDtypeStruct(by_head.shape, jnp.float32)
    number = jax.ShapeDtypeStruct(by_head.shape[:-1], jnp.float32)
    first, end = spans.prompt
    ends = pl.BlockSpec((None, _LANES), lambda p, h, i: (p, i))
    prompt = caches.prompt
    running = call(_prompt_kernel, (prompts, kv_heads, padded // _LANES),
                   [whole(which), ends, ends, lane_rows(_LANES), whole(prompt.k), whole(prompt.v)],
                   [lane_numbers(_LANES), lane_numbers(_LANES), lane_rows(_LANES)], [number, number, wide],
                   "prompt_attention", 4)(which, numbers(first), numbers(end), by_head, prompt.k, prompt.v)

    new = pl.BlockSpec((None, None, None, head_dim), lambda p, h, i: (p, i, h, 0))
    one = pl.BlockSpec((None, 1), lambda p, h, i: (p, i))
    parts = (*caches.suffix[:2], *caches.recent[:2])
    out = call(_own_kernel, (prompts, kv_heads, lanes),
               [whole(which), *[one] * 4, *[lane_numbers(1)] * 2, *[lane_rows(1)] * 2, new, new, *map(whole, parts)],
               lane_rows(1), jax.ShapeDtypeStruct(by_head.shape, q.dtype), "own_attention", 2)(
        which, *spans.suffix, *spans.recent, *running, by_head, k, v, *parts)
    out = jnp.swapaxes(out[:, :, :lanes, :shared], 1, 2)
    return out.reshape(q.shape)


def _scores(q: Array, k: Array, seen: Array, how: _How) -> Array:
    """[rows, positions] float32 scores of q [rows, Dh] and k [Dh, positions], in units of log 2."""
    return jnp.where(seen, _in_base_two(float32_dot(q, k), how), MASKED)


def _in_base_two(raw: Array, how: _How) -> Array:
    raw = raw * how.scale
    return (raw if how.softcap is None else how.softcap * jnp.tanh(raw / how.softcap)) * LOG2_E


class _Running(NamedTuple):
    """A softmax so far: the largest score, the sum of the others relative to it, and the weighted values."""

    top: Array
    total: Array
    out: Array

    def took(self, scores: Array, values: Array) -> _Running:
        top = jnp.maximum(self.top, jnp.max(scores, axis=1))
        keep, probs = jnp.exp2(self.top - top), jnp.exp2(scores - top[:, None])
        return _Running(top, self.total * keep + jnp.sum(probs, axis=1),
                        self.out * keep[:, None] + float32_dot(probs.astype(values.dtype), values))


def _read(running: _Running, q: Array, k_ref: Any, v_ref: Any, at: tuple[Any, ...], first: Array, end: Array,
          how: _How) -> _Running:
    """Goes over places [first, end) of a cache; first and end are [rows] or []."""

    def chunk(number: Array, running: _Running) -> _Running:
        places = number * CHUNK + jnp.arange(CHUNK)
        span = pl.ds(number * CHUNK, CHUNK)
        inside = places < last
        k = load(k_ref.at[(*at, slice(None), span)], inside[None, :])
        v = load(v_ref.at[(*at, span, slice(None))], inside[:, None])
        seen = (places[None, :] >= first.reshape(-1, 1)) & (places[None, :] < end.reshape(-1, 1))
        return running.took(_scores(q, k.astype(q.dtype), seen, how), v.astype(q.dtype))

    start, last = (first, end) if first.ndim == 0 else (jnp.min(first), jnp.max(end))
    return jax.lax.fori_loop(jax.lax.div(start, CHUNK), jax.lax.div(last + CHUNK - 1, CHUNK), chunk, running)


def _prompt_kernel(layer: Any, first: Any, end: Any, q_ref: Any, k_ref: Any, v_ref: Any, top_ref: Any, total_ref: Any,
                   out_ref: Any, *, how: _How) -> None:
    lanes, rows, head_dim = q_ref.shape
    count = lanes * rows
    q = q_ref[...].reshape(count, head_dim)

    def of_rows(ref: Any) -> Array:
        return jnp.broadcast_to(ref[...][:, None], (lanes, rows)).reshape(count)

    empty = _Running(jnp.full(count, MASKED, jnp.float32), jnp.zeros(count, jnp.float32),
                     jnp.zeros((count, head_dim), jnp.float32))
    at = layer[0], pl.program_id(0), pl.program_id(1)
    found = _read(empty, q, k_ref, v_ref, at, of_rows(first), of_rows(end), how)
    # a row that has seen nothing holds a top of MASKED: the new token, which every row sees, wipes out the rest
    top_ref[...], total_ref[...] = found.top.reshape(lanes, rows), found.total.reshape(lanes, rows)
    out_ref[...] = found.out.reshape(q_ref.shape)


def _own_kernel(layer: Any, first: Any, end: Any, first_now: Any, end_now: Any, top: Any, total: Any, out: Any,
                q_ref: Any, new_k: Any, new_v: Any, k_ref: Any, v_ref: Any, k_now: Any, v_now: Any, out_ref: Any, *,
                how: _How) -> None:
    rows, head_dim = q_ref.shape[1:]
    q = q_ref[...].reshape(rows, head_dim)
    at = layer[0], pl.program_id(0), pl.program_id(2), pl.program_id(1)
    running = _Running(top[...].reshape(rows), total[...].reshape(rows), out[...].reshape(rows, head_dim))
    running = _read(running, q, k_ref, v_ref, at, first[0], end[0], how)
    running = _read(running, q, k_now, v_now, at, first_now[0], end_now[0], how)
    own = jnp.sum(q.astype(jnp.float32) * new_k[...].astype(jnp.float32)[None, :], axis=1)
    own = _in_base_two(own, how)
    highest = jnp.maximum(running.top, own)
    keep, weight = jnp.exp2(running.top - highest), jnp.exp2(own - highest)
    mixed = running.out * keep[:, None] + weight[:, None] * new_v[...].astype(jnp.float32)[None, :]
    mixed = mixed / (running.total * keep + weight)[:, None]
    out_ref[...] = mixed.astype(out_ref.dtype).reshape(1, rows, head_dim)
