"""Attention of decoding by two Pallas-Triton kernels, for NVIDIA GPUs: what is read is what lanes see, once.

The first reads a prompt for several of its lanes at a time, the second what a lane has written itself and the new
token; the first hands its running softmax on to the second (Dao, arXiv 2307.08691). Caches are read where they lie, all
layers in one array, because a layer's slice would be a copy, and those of responses by pages (Kwon et al., arXiv
2309.06180). Lanes that are idle are no rows, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from rlhf_jax.models.attention import MASKED
from rlhf_jax.models.triton import LOG2_E, compiler_params, float32_dot, load, store
from rlhf_jax.sampling.cache import Caches, Spans
from rlhf_jax.sampling.pages import PAGE

_TILE = 64
"""Positions that are read at a time, a part of a page."""
_LEAST_ROWS, _LEAST_LANES = 16, 4
"""The fewest rows of a matrix product, of which heads beyond the real ones are padding; lanes that read a prompt
together."""
_NOWHERE = 2**30
"""Where a row that is none begins to see."""


class _How(NamedTuple):
    """scale, softcap: of the scores. shared: query heads that have one key head."""

    scale: float
    softcap: float | None
    kv_heads: int
    shared: int

    @property
    def width(self) -> int:
        """Rows that a lane's queries for one key head take."""
        return pl.next_power_of_2(self.shared)

    @property
    def new(self) -> int:
        """Vectors of a lane and a key head that are new: queries, key and value."""
        return self.shared + 2


def lanes_attention(q: Array, k: Array, v: Array, caches: Caches, layer: Any, spans: Spans, table: Array,
                    first: Array | None = None, *, lanes: int, depth: int, scale: float, softcap: float | None,
                    interpret: bool = False) -> Array:
    """What `models.attention.decode_attention` computes.

    Args:
      q: [A, H, Dh], k, v: [A, K, Dh] of the new tokens. Rows are slot after slot.
      layer: [] int32, whose keys and values to read. table: [A, J] int32, the pages of each row's suffix.
      first: [P + 1] int32, the first row of each slot, and their end; None where each slot has all its `lanes`.
      depth: no prompt is longer; the kernel reads no further than a row sees anyway. scale, softcap: of the scores.

    Returns:
      [A, H, Dh].
    """
    del depth
    count, heads, head_dim = q.shape
    slots, kv_heads = caches.prompt.k.shape[1], k.shape[1]
    first = jnp.arange(slots + 1, dtype=jnp.int32) * lanes if first is None else first
    how = _How(scale, softcap, kv_heads, heads // kv_heads)
    together = max(_LEAST_LANES, _LEAST_ROWS // how.width)
    # one array of a row's queries, key and value by key head, so that XLA makes them in one kernel
    new = jnp.concatenate([q.reshape(count, kv_heads, how.shared, head_dim), k[:, :, None], v[:, :, None]], axis=2)
    new = new.reshape(-1, head_dim)
    which = jnp.reshape(jnp.asarray(layer, jnp.int32), 1)

    def call(kernel: Any, grid: tuple[int, ...], outs: Any, name: str, warps: int, *ins: Array) -> Any:
        def whole(x: Any) -> pl.BlockSpec:
            return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))

        return pl.pallas_call(partial(kernel, how=how), grid=grid, in_specs=[*map(whole, ins)],
                              out_specs=jax.tree.map(whole, outs), out_shape=outs, name=name, interpret=interpret,
                              compiler_params=compiler_params(warps))(*ins)

    number = jax.ShapeDtypeStruct((count * heads,), jnp.float32)
    wide = jax.ShapeDtypeStruct((count * heads, head_dim), jnp.float32)
    running = call(partial(_prompt_kernel, together=together), (slots, kv_heads, pl.cdiv(lanes, together)),
                   (number, number, wide), "prompt_attention", 4, which, first, *spans.prompt, new, *caches.prompt[:2])
    out = call(_own_kernel, (count, kv_heads), jax.ShapeDtypeStruct(wide.shape, q.dtype), "own_attention", 2, which,
               table, *spans.suffix, *spans.recent, *running, new, *caches.suffix[:2], *caches.recent[:2])
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


def _read(running: _Running, q: Array, k_ref: Any, v_ref: Any, at: Callable[[Array], tuple[Any, ...]], first: Array,
          end: Array, how: _How, whole: bool = True) -> _Running:
    """Goes over places [first, end) of a cache; first and end are [rows] or [].

    at: where keys and values of the number-th tile of places lie. whole: a cache's positions are not cut into pages.
    """

    def tile(number: Array, running: _Running) -> _Running:
        places = number * _TILE + jnp.arange(_TILE)
        span = pl.ds(number * _TILE if whole else jax.lax.rem(number * _TILE, PAGE), _TILE)
        inside = places < last
        k = load(k_ref.at[(*at(number), slice(None), span)], inside[None, :])
        v = load(v_ref.at[(*at(number), span, slice(None))], inside[:, None])
        seen = (places[None, :] >= first.reshape(-1, 1)) & (places[None, :] < end.reshape(-1, 1))
        return running.took(_scores(q, k.astype(q.dtype), seen, how), v.astype(q.dtype))

    start, last = (first, end) if first.ndim == 0 else (jnp.min(first), jnp.max(end))
    return jax.lax.fori_loop(jax.lax.div(start, _TILE), jax.lax.div(last + _TILE - 1, _TILE), tile, running)


def _prompt_kernel(layer: Any, first_row: Any, first: Any, end: Any, new: Any, k_ref: Any, v_ref: Any, top_ref: Any,
                   total_ref: Any, out_ref: Any, *, how: _How, together: int) -> None:
    """A prompt, a key head, and some of the rows that are the prompt's lanes: `width` queries of each."""
    slot, head = pl.program_id(0), pl.program_id(1)
    number = jnp.arange(together * how.width)
    row, number = first_row[slot] + pl.program_id(2) * together + number // how.width, number % how.width
    real = (number < how.shared) & (row < first_row[slot + 1])
    pair = row * how.kv_heads + head
    q, at = load(*_vectors(new, pair * how.new + number, real)), pair * how.shared + number
    empty = _Running(jnp.full(number.shape, MASKED, jnp.float32), jnp.zeros(number.shape, jnp.float32),
                     jnp.zeros(q.shape, jnp.float32))
    of_row = jnp.where(real, row, 0)
    first, end = jnp.where(real, load(first.at[of_row], real), _NOWHERE), load(end.at[of_row], real)
    found = _read(empty, q, k_ref, v_ref, lambda _: (layer[0], slot, head), first, end, how)
    # a row that has seen nothing holds a top of MASKED: the new token, which every row sees, wipes out the rest
    store(*_numbers(top_ref, at, real), found.top)
    store(*_numbers(total_ref, at, real), found.total)
    store(*_vectors(out_ref, at, real), found.out)


def _own_kernel(layer: Any, table: Any, first: Any, end: Any, first_now: Any, end_now: Any, top: Any, total: Any,
                out: Any, new: Any, k_ref: Any, v_ref: Any, k_now: Any, v_now: Any, out_ref: Any, *, how: _How) -> None:
    """A row and a key head: its queries, padded to what a matrix product takes."""
    row, head = pl.program_id(0), pl.program_id(1)
    number = jnp.arange(max(_LEAST_ROWS, how.width))
    real, pair = number < how.shared, row * how.kv_heads + head
    q, at = load(*_vectors(new, pair * how.new + number, real)), pair * how.shared + number
    running = _Running(load(*_numbers(top, at, real)), load(*_numbers(total, at, real)), load(*_vectors(out, at, real)))

    def of_page(number: Array) -> tuple[Any, ...]:
        return layer[0], table[row, jax.lax.div(number * _TILE, PAGE)], head

    running = _read(running, q, k_ref, v_ref, of_page, first[row], end[row], how, whole=False)
    running = _read(running, q, k_now, v_now, lambda _: (layer[0], row, head), first_now[row], end_now[row], how)
    k, v = (new[pair * how.new + how.shared + i, :].astype(jnp.float32)[None, :] for i in range(2))
    own = _in_base_two(jnp.sum(q.astype(jnp.float32) * k, axis=1), how)
    highest = jnp.maximum(running.top, own)
    keep, weight = jnp.exp2(running.top - highest), jnp.exp2(own - highest)
    mixed = (running.out * keep[:, None] + weight[:, None] * v) / (running.total * keep + weight)[:, None]
    store(*_vectors(out_ref, at, real), mixed)


def _numbers(ref: Any, at: Array, real: Array) -> tuple[Any, Array]:
    """These places of [places], and the mask of the real ones; the others lie beyond the end."""
    return ref.at[jnp.where(real, at, ref.shape[0])], real


def _vectors(ref: Any, at: Array, real: Array) -> tuple[Any, Array]:
    """The same of [places, Dh]."""
    shape = *at.shape, ref.shape[-1]
    at = jnp.where(real, at, ref.shape[0])
    return (ref.at[jnp.broadcast_to(at[:, None], shape), jnp.broadcast_to(jnp.arange(shape[-1]), shape)],
            jnp.broadcast_to(real[:, None], shape))
