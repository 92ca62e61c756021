"""Attention over packed, prefix-shared rows, and the two-part attention of decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.models.config import DecoderConfig

MASKED = -1e30
"""Score of what is not seen, finite so that sums over nothing are."""


def select_windowed(local: bool | Array, windowed: Any, full: Any) -> Any:
    """The tree meant for this layer: `windowed` if it attends through a window, else `full`.

    local: a Python bool where all layers are of one kind (nothing is then computed), else the layer's own scalar.
    """
    if isinstance(local, bool):
        return windowed if local else full
    return jax.tree.map(lambda a, b: jnp.where(local, a, b), windowed, full)


def capped(x: Array, softcap: float | None) -> Array:
    """softcap * tanh(x / softcap) (Gemma 2, arXiv 2408.00118), or x."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


class ScoreRule(TypedDict):
    """How attention scores come from q . k: keyword arguments of the functions below."""

    scale: float
    softcap: float | None


def score_rule(config: DecoderConfig) -> ScoreRule:
    return {"scale": (config.query_scalar or config.head_dim) ** -0.5, "softcap": config.attn_softcap}


class RowIds(NamedTuple):
    """What each position of packed rows is: [B, T] int32 group (0 is padding), branch (0 is the prompt), position."""

    group: Array
    branch: Array
    position: Array


def packed_mask(ids: RowIds, window: int | None = None) -> Array:
    """[B, T, T] bool, [query, key]: who may attend to whom in packed rows.

    A query sees an earlier (or its own) position of its group, in the shared prompt (branch 0) or in its own branch;
    with a window w only positions less than w behind it. Padding sees nothing.
    """
    group, branch, position = ids
    visible = (group[:, :, None] == group[:, None, :]) & (group > 0)[:, :, None]
    visible &= (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    distance = position[:, :, None] - position[:, None, :]
    visible &= distance >= 0
    if window is not None:
        visible &= distance < window
    return visible


def attention(q: Array, k: Array, v: Array, mask: Array, *, scale: float, softcap: float | None = None) -> Array:
    """Softmax attention with grouped query heads.

    Args:
      q: [B, T, H, Dh]. k, v: [B, S, K, Dh] with H a multiple of K. mask: [B, T, S] bool.
      scale, softcap: of the scores.

    Returns:
      [B, T, H, Dh]. Scores and softmax are float32; a query that sees nothing gets a finite, meaningless value.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], capped(scores * scale, softcap), MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", probs, v)
    return out.reshape(batch, length, heads, head_dim)


class RowAttention(NamedTuple):
    """One way to compute attention over packed rows; all of them give what `attention` gives where a token is real.

    prepare: (ids of the rows, window) -> what `attend` needs of them, once for all layers of a kind.
    attend: (q [B, T, H, Dh], k [B, T, K, Dh], v, prepared, scale=, softcap=) -> [B, T, H, Dh].
    """

    prepare: Callable[[RowIds, int | None], Any]
    attend: Callable[..., Array]


WHOLE_ROWS = RowAttention(packed_mask, attention)
"""Every query looks at its whole row: plain XLA, on any backend."""


def _by_jax(implementation: Any, q: Array, k: Array, v: Array, mask: Array, *, scale: float, softcap: float | None
            ) -> Array:
    del softcap  # there is none: see `training.attention`
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale, implementation=implementation)


def cut_by_heads(mesh: Mesh, axis: str, q: Array, k: Array, v: Array) -> tuple[str | None, Array, Array]:
    """How heads are cut over an axis of the mesh for a kernel on each device: the axis, None where they do not divide;
    and keys and values [B, T, K, Dh], of which each query head brings its own where there are too few to cut."""
    heads, kv_heads, ways = q.shape[2], k.shape[2], mesh.shape[axis]
    if heads % ways:
        return None, k, v
    if kv_heads % ways:
        k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    return axis, k, v


def mesh_around(mesh: Mesh) -> Mesh | None:
    """What `shard_map` is told: None inside of a mesh that is being traced under, which it then takes."""
    return mesh if jax.sharding.get_abstract_mesh().empty else None


def padding_sees_itself(ids: RowIds, window: int | None = None) -> Array:
    """`packed_mask`, for kernels whose sums over a query that sees nothing are not finite."""
    return packed_mask(ids, window) | jnp.eye(ids.group.shape[1], dtype=bool)


CUDNN_ROWS = RowAttention(padding_sees_itself, partial(_by_jax, "cudnn"))
"""cuDNN's fused attention under the rows' mask: no [T, T] scores in memory; bfloat16 or float16, no soft cap."""


class KeyValues(NamedTuple):
    """Keys and values of S positions, laid out as the products of decoding read them.

    k: [..., K, Dh, S]. v: [..., K, S, Dh]. k_scale, v_scale: [..., K, S] float32 where k and v are int8 and stand for
    themselves times their position's scale, else None.
    """

    k: Array
    v: Array
    k_scale: Array | None = None
    v_scale: Array | None = None


class Stored(NamedTuple):
    """Keys and values of earlier tokens, and which of them each lane sees: mask [P, n, S] bool."""

    cache: KeyValues
    mask: Array


def decode_attention(q: Array, k: Array, v: Array, prompt: Stored, own: Sequence[Stored], *, scale: float,
                     softcap: float | None = None) -> Array:
    """One new token a lane attends to its prompt, to what the lane has written, and to itself, under one softmax.

    The P prompts are stored once and read by their n lanes each; nothing is repeated n times. Scales of int8 caches
    multiply the scores of their keys and the probabilities of their values, so the products read the int8 as it is.

    Args:
      q: [P, n, H, Dh], k, v: [P, n, K, Dh] of the new tokens.
      prompt: k [P, K, Dh, S]. own: what lanes wrote, in any number of pieces, each k [P, n, K, Dh, U].
      scale, softcap: of the scores.

    Returns:
      [P, n, H, Dh].
    """
    prompts, lanes, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(prompts, lanes, kv_heads, heads // kv_heads, head_dim) * jnp.asarray(scale, q.dtype)
    wide = jnp.float32

    def by_head(x: Array) -> Array:  # [P, n, K, G, ...] -> [P, K, n G, ...]: all lanes read their prompt at once
        return jnp.swapaxes(x, 1, 2).reshape(prompts, kv_heads, -1, x.shape[-1])

    def by_lane(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(prompts, kv_heads, lanes, -1, x.shape[-1]), 1, 2)

    def product(x: Array, stored: Array, **how: Any) -> Array:  # x [P, n, K, G, ...] by a prompt's or a lane's own
        if stored.ndim == 4:
            return by_lane(jnp.matmul(by_head(x), stored, **how))
        return jnp.matmul(x, stored, **how)

    def scaled(x: Array, scales: Array | None) -> Array:  # x [P, n, K, G, positions]
        return x if scales is None else x * jnp.expand_dims(scales, (1, 3) if scales.ndim == 3 else 3)

    def scores(part: Stored) -> Array:
        found = product(q, part.cache.k.astype(q.dtype), preferred_element_type=wide)
        found = capped(scaled(found, part.cache.k_scale), softcap)
        return jnp.where(part.mask[:, :, None, None], found, MASKED)

    parts = prompt, *own
    on_self = capped(jnp.einsum("pnkgd,pnkd->pnkg", q, k, preferred_element_type=wide), softcap)
    probs = jax.nn.softmax(jnp.concatenate([*map(scores, parts), on_self[..., None]], axis=-1), axis=-1)
    out = probs[..., -1:].astype(v.dtype) * v[:, :, :, None]
    start = 0
    for cache, mask in parts:
        some = probs[..., start : (start := start + mask.shape[-1])]
        out += product(scaled(some, cache.v_scale).astype(v.dtype), cache.v.astype(v.dtype))
    return out.reshape(prompts, lanes, heads, head_dim)
