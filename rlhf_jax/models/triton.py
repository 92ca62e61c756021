"""Attention over packed rows by a Pallas-Triton kernel, for NVIDIA GPUs: no [T, T] array, and no block in vain.

A packed row holds many short branches, so a block of queries sees few of its row's blocks of keys. Which ones is found
once a batch, for all layers; the kernels visit those alone, under a running softmax (Dao, arXiv 2307.08691), and work
out who sees whom inside a block from the ids of its positions.

JAX has announced that Pallas will drop its Triton backend one day (0.12 has it). It is imported where kernels are made,
so that the rest of the package does not depend on it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from rlhf_jax.models.attention import MASKED, RowAttention, RowIds, cut_by_heads, mesh_around, packed_mask

_BLOCKS = (64, 32)
"""Queries and keys that a program takes at a time; a row's length must be a multiple of one of them."""
LOG2_E = math.log2(math.e)


class Visits(NamedTuple):
    """Who sees whom, by blocks; the same in all layers.

    own, shared, position, lowest: [B, T] int32. A query sees the keys whose `own` is its own or its `shared` (branch
    and prompt of its group), at positions from its `lowest` up to its own.
    keys: [B, N, N] int32, for each block of queries the blocks of keys it sees first. key_counts: [B, N] how many.
    queries, query_counts: the same for each block of keys.
    """

    own: Array
    shared: Array
    position: Array
    lowest: Array
    keys: Array
    key_counts: Array
    queries: Array
    query_counts: Array


class _How(NamedTuple):
    """What the kernels are made for. block: tokens. interpret: run as Python, for tests on a CPU."""

    block: int
    scale: float
    softcap: float | None
    interpret: bool


def find_visits(ids: RowIds, window: int | None, block: int) -> Visits:
    """The visits of packed rows of [B, T] ids, T a multiple of `block`."""
    rows, length = ids.group.shape
    count = length // block
    seen = packed_mask(ids, window).reshape(rows, count, block, count, block)
    needed = jnp.any(seen, axis=(2, 4))  # [B, queries, keys]
    shared, real = ids.group * (length + 1), ids.group > 0
    lowest = jnp.where(real, 0 if window is None else ids.position - (window - 1), length)  # padding sees nothing

    def first(needed: Array) -> tuple[Array, Array]:
        return (jnp.argsort(~needed, axis=-1, stable=True).astype(jnp.int32),
                jnp.sum(needed, axis=-1, dtype=jnp.int32))

    return Visits(shared + ids.branch, shared, jnp.where(real, ids.position, -1), lowest, *first(needed),
                  *first(jnp.swapaxes(needed, 1, 2)))


def block_of(length: int) -> int | None:
    """The block in which rows of so many tokens are taken, None where none fits."""
    return next((size for size in _BLOCKS if length % size == 0), None)


def triton_rows(mesh: Mesh | None, length: int, *, interpret: bool = False) -> RowAttention:
    """The kernel on every device of `mesh`, which cuts rows over its batch axes and heads over `tensor`.

    Args:
      length: tokens of a row. interpret: run the kernels' Python instead of compiling it, for tests on a CPU.

    Raises:
      ValueError: if the rows are no multiple of a block, or their positions are cut over devices.
    """
    block = block_of(length)
    if block is None:
        raise ValueError(f"row_length = {length} is no multiple of {_BLOCKS[-1]}, which attention by Triton needs; set "
                         "row_length to one")
    if mesh is not None and mesh.shape["context"] > 1:
        raise ValueError(f"attention by Triton does not cut a row over devices, and the mesh has context = "
                         f"{mesh.shape['context']}; use attn_implementation = xla")
    rows = ("data", "fsdp")

    def attend(q: Array, k: Array, v: Array, visits: Visits, *, scale: float, softcap: float | None) -> Array:
        run = partial(visiting_attention, how=_How(block, scale, softcap, interpret))
        if mesh is None or mesh.size == 1:
            return run(q, k, v, visits)
        split, k, v = cut_by_heads(mesh, "tensor", q, k, v)
        by_head = PartitionSpec(rows, None, split)
        return jax.shard_map(run, mesh=mesh_around(mesh), in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
                             out_specs=by_head, check_vma=False)(q, k, v, visits)

    return RowAttention(partial(find_visits, block=block), attend)


@partial(jax.custom_vjp, nondiff_argnames=("how",))
def visiting_attention(q: Array, k: Array, v: Array, visits: Visits, how: _How) -> Array:
    """What `attention.attention` computes, for q [B, T, H, Dh] and k, v [B, T, K, Dh]; padding gets 0."""
    return _forward(q, k, v, visits, how)[0]


def _scores(q: Array, k: Array, mask: Array, how: _How) -> tuple[Array, Array | None]:
    """[queries, keys] float32 scores in units of log 2, and the slope of the soft cap."""
    raw = float32_dot(q, k.T) * how.scale
    if how.softcap is None:
        return jnp.where(mask, raw * LOG2_E, MASKED), None
    squashed = jnp.tanh(raw / how.softcap)
    return jnp.where(mask, how.softcap * squashed * LOG2_E, MASKED), 1.0 - squashed * squashed


def float32_dot(a: Array, b: Array) -> Array:
    """float32 sums of products; of float32 operands to the last bit, not in TF32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


class _Ids(NamedTuple):
    """References to the ids of a row."""

    own: Any
    shared: Any
    position: Any
    lowest: Any

    def mask(self, queries: Any, keys: Any) -> Array:
        """[queries, keys] bool: who sees whom among these places of the row."""
        of, at = self.own[keys][None, :], self.position[keys][None, :]
        own, shared = self.own[queries][:, None], self.shared[queries][:, None]
        position, lowest = self.position[queries][:, None], self.lowest[queries][:, None]
        return ((of == own) | (of == shared)) & (at <= position) & (at >= lowest)


def compiler_params(warps: int) -> Any:
    """How Triton compiles a kernel."""
    from jax.experimental.pallas import triton as plgpu

    return plgpu.CompilerParams(num_warps=warps, num_stages=2)


def load(at: Any, mask: Array) -> Array:
    """What a reference holds where `mask` is set, zero elsewhere."""
    from jax.experimental.pallas import triton as plgpu

    return plgpu.load(at, mask=mask, other=0)


def store(at: Any, mask: Array, values: Array) -> None:
    """Writes values into a reference where `mask` is set."""
    from jax.experimental.pallas import triton as plgpu

    plgpu.store(at, values.astype(at.dtype), mask=mask)


def _within(ref: Any, width: int) -> Array:
    """Of [places, Dh padded to a power of two], what is no padding."""
    return (jnp.arange(ref.shape[-1]) < width)[None, :]


def _load(ref: Any, places: Any, width: int, *, head: Any = None) -> Array:
    """[places, Dh padded to a power of two], zero beyond `width`."""
    return load(ref.at[places, :] if head is None else ref.at[places, head, :], _within(ref, width))


def _forward_kernel(own: Any, shared: Any, position: Any, lowest: Any, keys: Any, count: Any, q_ref: Any, k_ref: Any,
                    v_ref: Any, out_ref: Any, level_ref: Any, *, how: _How, width: int) -> None:
    ids, size = _Ids(own, shared, position, lowest), how.block
    mine = pl.ds(pl.program_id(0) * size, size)
    q = _load(q_ref, pl.ds(0, size), width)

    def visit(number: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = running
        there = pl.ds(keys[number] * size, size)
        scores, _ = _scores(q, _load(k_ref, there, width), ids.mask(mine, there), how)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        keep, probs = jnp.exp2(top - higher), jnp.exp2(scores - higher[:, None])
        v = _load(v_ref, there, width)
        out = out * keep[:, None] + float32_dot(probs.astype(v.dtype), v)
        return higher, total * keep + jnp.sum(probs, axis=1), out

    start = jnp.full(size, MASKED, jnp.float32), jnp.zeros(size, jnp.float32), jnp.zeros(q.shape, jnp.float32)
    top, total, out = jax.lax.fori_loop(0, count[0], visit, start)
    seeing = (position[mine] >= 0) & (total > 0)
    total = jnp.where(seeing, total, 1.0)
    out = jnp.where(seeing[:, None], out / total[:, None], 0.0)
    store(out_ref, _within(out_ref, width), out)
    level_ref[...] = top + jnp.log2(total)


def _queries_kernel(own: Any, shared: Any, position: Any, lowest: Any, keys: Any, count: Any, q_ref: Any, k_ref: Any,
                    v_ref: Any, grad_ref: Any, level_ref: Any, pull_ref: Any, to_q_ref: Any, *, how: _How, width: int
                    ) -> None:
    """Gradient of a block of queries."""
    ids, size = _Ids(own, shared, position, lowest), how.block
    mine = pl.ds(pl.program_id(0) * size, size)
    q, grad = _load(q_ref, pl.ds(0, size), width), _load(grad_ref, pl.ds(0, size), width)
    level, pull = level_ref[...][:, None], pull_ref[...][:, None]

    def visit(number: Array, to_q: Array) -> Array:
        there = pl.ds(keys[number] * size, size)
        k, mask = _load(k_ref, there, width), ids.mask(mine, there)
        scores, slope = _scores(q, k, mask, how)
        probs = jnp.where(mask, jnp.exp2(scores - level), 0.0)
        to_scores = probs * (float32_dot(grad, _load(v_ref, there, width).T) - pull) * how.scale
        return to_q + float32_dot((to_scores if slope is None else to_scores * slope).astype(k.dtype), k)

    to_q = jax.lax.fori_loop(0, count[0], visit, jnp.zeros(q.shape, jnp.float32))
    store(to_q_ref, _within(to_q_ref, width), to_q)


def _keys_kernel(own: Any, shared: Any, position: Any, lowest: Any, queries: Any, count: Any, q_ref: Any, k_ref: Any,
                 v_ref: Any, grad_ref: Any, level_ref: Any, pull_ref: Any, to_k_ref: Any, to_v_ref: Any, *, how: _How,
                 width: int) -> None:
    """Gradient of a block of keys and values: over the blocks of queries that see it, and the heads that share it."""
    ids, size = _Ids(own, shared, position, lowest), how.block
    mine, heads = pl.ds(pl.program_id(0) * size, size), q_ref.shape[1]
    k, v = _load(k_ref, pl.ds(0, size), width), _load(v_ref, pl.ds(0, size), width)

    def visit(number: Array, running: tuple[Array, Array]) -> tuple[Array, Array]:
        to_k, to_v = running
        head = jax.lax.rem(number, heads)
        there = pl.ds(queries[jax.lax.div(number, heads)] * size, size)
        q, grad = _load(q_ref, there, width, head=head), _load(grad_ref, there, width, head=head)
        mask = ids.mask(there, mine)
        scores, slope = _scores(q, k, mask, how)
        probs = jnp.where(mask, jnp.exp2(scores - level_ref[head, there][:, None]), 0.0)
        to_scores = probs * (float32_dot(grad, v.T) - pull_ref[head, there][:, None]) * how.scale
        to_scores = to_scores if slope is None else to_scores * slope
        to_v += float32_dot(probs.astype(grad.dtype).T, grad)
        return to_k + float32_dot(to_scores.astype(q.dtype).T, q), to_v

    start = jnp.zeros(k.shape, jnp.float32)
    to_k, to_v = jax.lax.fori_loop(0, count[0] * heads, visit, (start, start))
    store(to_k_ref, _within(to_k_ref, width), to_k)
    store(to_v_ref, _within(to_v_ref, width), to_v)


class _Places(NamedTuple):
    """Where a program (block, row, head) finds its part of each array."""

    length: int
    block: int
    width: int

    def ids(self, tables: int) -> list[pl.BlockSpec]:
        """Of the four ids, and of the table of visits and its counts."""
        row = pl.BlockSpec((None, self.length), lambda i, b, h: (b, 0))
        table = pl.BlockSpec((None, None, tables), lambda i, b, h: (b, i, 0))
        return [row] * 4 + [table, pl.BlockSpec((None, 1), lambda i, b, h: (b, i))]

    def of_block(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, None, self.width), lambda i, b, h: (b, i, h, 0))

    def of_row(self, shared: int) -> pl.BlockSpec:
        """The whole row of the key head that `shared` query heads use."""
        return pl.BlockSpec((None, self.length, None, self.width), lambda i, b, h: (b, 0, h // shared, 0))

    def of_heads(self, shared: int) -> pl.BlockSpec:
        """The whole row of all query heads that share key head h."""
        return pl.BlockSpec((None, self.length, shared, self.width), lambda i, b, h: (b, 0, h, 0))

    def numbers(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.block), lambda i, b, h: (b, h, i))

    def numbers_of_heads(self, shared: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, shared, self.length), lambda i, b, h: (b, h, 0))


def _compiler(head_dim: int) -> Any:
    return compiler_params(4 if head_dim <= 64 else 8)


def _forward(q: Array, k: Array, v: Array, visits: Visits, how: _How) -> tuple[Array, Any]:
    rows, length, heads, head_dim = q.shape
    count, shared = length // how.block, heads // k.shape[2]
    at = _Places(length, how.block, pl.next_power_of_2(head_dim))
    out, level = pl.pallas_call(
        partial(_forward_kernel, how=how, width=head_dim), grid=(count, rows, heads), name="visiting_attention",
        in_specs=[*at.ids(count), at.of_block(), at.of_row(shared), at.of_row(shared)],
        out_specs=[at.of_block(), at.numbers()], interpret=how.interpret, compiler_params=_compiler(head_dim),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)],
    )(*visits[:6], q, k, v)
    return out, (q, k, v, visits, out, level)


def _backward(how: _How, saved: Any, grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, visits, out, level = saved
    rows, length, heads, head_dim = q.shape
    kv_heads, count = k.shape[2], length // how.block
    shared, at = heads // kv_heads, _Places(length, how.block, pl.next_power_of_2(head_dim))
    pull = jnp.einsum("bthd,bthd->bht", grad, out, preferred_element_type=jnp.float32)
    common: dict[str, Any] = {"interpret": how.interpret, "compiler_params": _compiler(head_dim)}
    to_q = pl.pallas_call(
        partial(_queries_kernel, how=how, width=head_dim), grid=(count, rows, heads), name="visiting_attention_queries",
        in_specs=[*at.ids(count), at.of_block(), at.of_row(shared), at.of_row(shared), at.of_block(), at.numbers(),
                  at.numbers()],
        out_specs=at.of_block(), out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype), **common,
    )(*visits[:6], q, k, v, grad, level, pull)
    to_k, to_v = pl.pallas_call(
        partial(_keys_kernel, how=how, width=head_dim), grid=(count, rows, kv_heads), name="visiting_attention_keys",
        in_specs=[*at.ids(count), at.of_heads(shared), at.of_block(), at.of_block(), at.of_heads(shared),
                  at.numbers_of_heads(shared), at.numbers_of_heads(shared)],
        out_specs=[at.of_block(), at.of_block()],
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)], **common,
    )(*visits[:4], visits.queries, visits.query_counts, q, k, v, grad, level, pull)
    return to_q, to_k, to_v, None


visiting_attention.defvjp(_forward, _backward)
