"""Attention of decoding over responses that lie in pages, by XLA; on TPUs our kernel reads the pages.

What a token sees is read in parts, each under a softmax of its own, and these are put together (Dao, arXiv 2307.08691):
the prompt for all of its lanes at once, the lane's pages (Kwon et al., arXiv 2309.06180), the tokens of this block, and
the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.attention import MASKED, KeyValues, capped
from rlhf_jax.sampling.cache import Caches, Spans
from rlhf_jax.sampling.cache import first as first_places
from rlhf_jax.sampling.pages import PAGE

ReadPages = Callable[..., "Seen"]
"""`read_pages`, or a kernel that gives the same."""


class Seen(NamedTuple):
    """A softmax over some of what tokens see.

    top: [...] the largest score. total: [...] the sum of exp(score - top). out: [..., Dh] that sum, each weighing its
    value; all float32. Where nothing is seen, top is so low that another part outweighs it.
    """

    top: Array
    total: Array
    out: Array

    def joined(self, other: Seen) -> Seen:
        """Over both."""
        top = jnp.maximum(self.top, other.top)
        ours, theirs = jnp.exp(self.top - top), jnp.exp(other.top - top)
        return Seen(top, self.total * ours + other.total * theirs,
                    self.out * ours[..., None] + other.out * theirs[..., None])


def paged_lanes(q: Array, k: Array, v: Array, caches: Caches, layer: Any, spans: Spans, table: Array,
                first: Array | None = None, *, lanes: int, depth: int, scale: float, softcap: float | None,
                read: ReadPages | None = None) -> Array:
    """What `models.attention.decode_attention` computes, and `lanes.lanes_attention`, whose arguments these are.

    Args:
      depth: of the prompts, which are read so far for all. read: reads the pages; None for `read_pages`.
    """
    count, _, head_dim = q.shape
    slots, kv_heads = caches.prompt.k.shape[1], k.shape[1]
    queries = q.reshape(count, kv_heads, -1, head_dim) * jnp.asarray(scale, q.dtype)  # [A, K, G, Dh]
    prompt, recent = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False),
                                  (caches.prompt, caches.recent))
    grid = _Grid.of(first, slots, lanes, count)
    depth = min(-(-depth // PAGE) * PAGE, prompt.k.shape[-1])  # whole lines of memory
    on_prompt = _see(grid.spread(queries), first_places(prompt, depth), jax.tree.map(grid.spread, spans.prompt),
                     softcap)
    on_recent = _see(queries[:, None], recent, jax.tree.map(lambda x: x[:, None], spans.recent), softcap)
    own = capped(jnp.einsum("akgd,akd->akg", queries, k, preferred_element_type=jnp.float32), softcap)
    itself = Seen(own, jnp.ones_like(own), jnp.broadcast_to(v[:, :, None].astype(jnp.float32), queries.shape))
    on_pages = (read or read_pages)(queries, caches.suffix, layer, spans.suffix, table, softcap)
    seen = itself.joined(jax.tree.map(grid.rows, on_prompt)).joined(on_pages)
    seen = seen.joined(jax.tree.map(lambda x: x[:, 0], on_recent))
    return (seen.out / seen.total[..., None]).astype(q.dtype).reshape(q.shape)


def read_pages(q: Array, pages: KeyValues, layer: Any, span: tuple[Array, Array], table: Array, softcap: float | None
               ) -> Seen:
    """Goes over the pages of all rows, the first of each, then the second, and so on.

    Args:
      q: [A, K, G, Dh], scaled. pages: of all layers, k [L, N, K, Dh, PAGE]. layer: [] int32.
      span: [A] first place that a row sees of its pages, and their end. table: [A, J] int32. softcap: of the scores.

    Returns:
      [A, K, G, ...].
    """
    size = pages.k.shape[-1]
    first, end = span

    def page(number: Array, seen: Seen) -> Seen:
        at = jax.lax.dynamic_index_in_dim(table, number, axis=1, keepdims=False)
        some = jax.tree.map(lambda x: x.at[layer, at].get(mode="clip"), pages)
        here = _see(q[:, None], some, jax.tree.map(lambda x: (x - number * size)[:, None], span), softcap)
        return seen.joined(jax.tree.map(lambda x: x[:, 0], here))

    wide = jnp.zeros(q.shape, jnp.float32)
    empty = Seen(wide[..., 0] + MASKED, wide[..., 0], wide)
    return jax.lax.fori_loop(jnp.min(first) // size, -(-jnp.max(end) // size), page, empty)


def _see(q: Array, cache: KeyValues, span: tuple[Array, Array], softcap: float | None) -> Seen:
    """q [P, n, K, G, Dh], scaled, on positions [first, end), each [P, n], of a cache k [P, K, Dh, S]."""
    first, end = span
    slots, lanes, kv_heads, shared, head_dim = q.shape
    by_head = jnp.swapaxes(q, 1, 2).reshape(slots, kv_heads, lanes * shared, head_dim)
    scores = jnp.matmul(by_head, cache.k.astype(q.dtype), preferred_element_type=jnp.float32)
    if cache.k_scale is not None:
        scores *= cache.k_scale[:, :, None]
    places = jnp.arange(scores.shape[-1])
    mask = (places >= first[..., None]) & (places < end[..., None])  # [P, n, S]
    scores = capped(scores, softcap).reshape(slots, kv_heads, lanes, shared, -1)
    scores = jnp.where(mask[:, None, :, None], scores, MASKED)
    top = jnp.max(scores, axis=-1)
    probs = jnp.where(mask[:, None, :, None], jnp.exp(scores - top[..., None]), 0.0)
    total = jnp.sum(probs, axis=-1)
    if cache.v_scale is not None:
        probs *= cache.v_scale[:, :, None, None]
    probs = probs.reshape(slots, kv_heads, lanes * shared, -1).astype(q.dtype)
    out = jnp.matmul(probs, cache.v.astype(q.dtype), preferred_element_type=jnp.float32)
    return Seen(*(jnp.swapaxes(x, 1, 2) for x in (top, total, out.reshape(slots, kv_heads, lanes, shared, -1))))


class _Grid(NamedTuple):
    """Where rows are in the grid [P, n] of lanes: slot and lane of each, P for none; None where every lane is a row."""

    shape: tuple[int, int]
    places: tuple[Array, Array] | None

    @classmethod
    def of(cls, first: Array | None, slots: int, lanes: int, rows: int) -> _Grid:
        """first: of `paged_lanes`."""
        if first is None:
            return cls((slots, lanes), None)
        number = jnp.arange(rows)
        slot = jnp.searchsorted(first, number, side="right") - 1
        return cls((slots, lanes), (slot, number - first[slot]))

    def spread(self, rows: Array) -> Array:
        """[A, ...] -> [P, n, ...], zeros where no row is."""
        if self.places is None:
            return rows.reshape(*self.shape, *rows.shape[1:])
        return jnp.zeros((*self.shape, *rows.shape[1:]), rows.dtype).at[self.places].set(rows, mode="drop")

    def rows(self, grid: Array) -> Array:
        """[P, n, ...] -> [A, ...]."""
        if self.places is None:
            return grid.reshape(-1, *grid.shape[2:])
        return grid.at[self.places].get(mode="clip")
