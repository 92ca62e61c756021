"""Attention of decoding over pages by a Pallas kernel, for TPUs: what is read is the pages that lanes have.

A program takes some rows. A page of each is on its way from the device's memory while the one before it is attended to,
across programs too, so that no read is waited for but the first.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rlhf_jax.models.attention import MASKED, KeyValues, capped
from rlhf_jax.sampling.paged import Seen

LINE = 128
"""Numbers in a line of the vector unit: heads and pages are multiples of it."""
_LEAST_QUERIES = 8
"""Queries of a key head are padded to a multiple of it, the rows of the vector unit."""
_BUFFERS = 8 << 20
"""Bytes of fast memory for pages, half of what a kernel has by default."""
_MOST_ROWS = 16


class _How(NamedTuple):
    """rows: of a program. softcap: of the scores."""

    rows: int
    softcap: float | None


def fetch_pages(q: Array, pages: KeyValues, layer: Any, span: tuple[Array, Array], table: Array, softcap: float | None,
                *, interpret: Any = False) -> Seen:
    """What `paged.read_pages` gives, whose arguments these are, with a total of 1; no int8, and heads and pages of
    multiples of 128.

    Args:
      interpret: run the kernel's Python instead of compiling it, for tests on a CPU.
    """
    count, kv_heads, shared, head_dim = q.shape
    size = pages.k.shape[-1]
    page = kv_heads * head_dim * size * pages.k.dtype.itemsize
    rows = max(1, min(_MOST_ROWS, _BUFFERS // (4 * page)))  # two buffers of keys and two of values
    padded = -(-count // rows) * rows
    queries = jnp.pad(q, ((0, padded - count), (0, 0), (0, -shared % _LEAST_QUERIES), (0, 0)))
    first, end = (jnp.pad(x, (0, padded - count)) for x in span)
    table = jnp.pad(table, ((0, padded - count), (0, 0)))
    wide = queries.shape[2]

    def of_rows(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, *shape), lambda i, *_: (i, *[0] * len(shape)))

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    number = rows, kv_heads, wide, LINE  # one number of each query, along a line
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4, grid=(padded // rows,),
        in_specs=[of_rows(kv_heads, wide, head_dim), anywhere, anywhere],
        out_specs=[of_rows(kv_heads, wide, LINE), of_rows(kv_heads, wide, head_dim)],
        scratch_shapes=[pltpu.VMEM((2, rows, *pages.k.shape[2:]), pages.k.dtype),
                        pltpu.VMEM((2, rows, *pages.v.shape[2:]), pages.v.dtype),
                        pltpu.VMEM(number, jnp.float32), pltpu.VMEM(number, jnp.float32),
                        pltpu.SemaphoreType.DMA((2, 2)), pltpu.SMEM((1,), jnp.int32)])
    level, out = pl.pallas_call(
        partial(_kernel, how=_How(rows, softcap)), grid_spec=grid, name="page_attention", interpret=interpret,
        out_shape=[jax.ShapeDtypeStruct((padded, *number[1:]), jnp.float32),
                   jax.ShapeDtypeStruct(queries.shape, jnp.float32)],
        # one program after the other, since each begins the reads of the next
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
    )(jnp.reshape(jnp.asarray(layer, jnp.int32), 1), table.reshape(-1), first, end, queries, pages.k, pages.v)
    level = level[:count, :, :shared, 0]
    return Seen(level, jnp.ones_like(level), out[:count, :, :shared])


class _Fetch(NamedTuple):
    """References that say which pages rows have, and what takes them."""

    layer: Any
    table: Any
    first: Any
    end: Any
    pages: tuple[Any, Any]
    buffers: tuple[Any, Any]
    arrived: Any
    rows: int

    def steps(self, program: Any) -> Array:
        """Pages of the program's row that has most; one at least."""
        return jax.lax.fori_loop(0, self.rows, lambda r, most: jnp.maximum(most, self._count(program * self.rows + r)),
                                 jnp.int32(1))

    def _first(self, row: Any) -> Array:
        return jax.lax.div(self.first[row], self.buffers[0].shape[-1])

    def _count(self, row: Any) -> Array:
        size = self.buffers[0].shape[-1]
        return jax.lax.div(self.end[row] + (size - 1), size) - self._first(row)

    def page(self, row: Any, step: Any) -> tuple[Array, Array]:
        """Number of the page among the row's own, and whether the row has it."""
        return self._first(row) + step, step < self._count(row)

    def each(self, program: Any, step: Any, slot: Any, do: Any) -> None:
        """Calls `do` with the copies of the step's pages into a buffer."""
        width = self.table.shape[0] // self.first.shape[0]

        def one(r: Array, _: None) -> None:
            row = program * self.rows + r
            number, there = self.page(row, step)

            @pl.when(there)
            def copies() -> None:
                at = self.table[row * width + number]
                for kind in range(2):
                    do(pltpu.make_async_copy(self.pages[kind].at[self.layer[0], at], self.buffers[kind].at[slot, r],
                                             self.arrived.at[slot, kind]))

        jax.lax.fori_loop(0, self.rows, one, None)


def _kernel(layer: Any, table: Any, first: Any, end: Any, q_ref: Any, k_pages: Any, v_pages: Any, level_ref: Any,
            out_ref: Any, k_buffer: Any, v_buffer: Any, top_ref: Any, total_ref: Any, arrived: Any, slot_ref: Any, *,
            how: _How) -> None:
    fetch = _Fetch(layer, table, first, end, (k_pages, v_pages), (k_buffer, v_buffer), arrived, how.rows)
    program, programs = pl.program_id(0), pl.num_programs(0)
    size = k_buffer.shape[-1]

    @pl.when(program == 0)
    def begin() -> None:
        slot_ref[0] = 0
        fetch.each(0, 0, 0, lambda copy: copy.start())

    top_ref[...] = jnp.full(top_ref.shape, MASKED, jnp.float32)
    total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
    out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)
    steps, began = fetch.steps(program), slot_ref[0]

    def row(r: Array, step: Any, slot: Any) -> None:
        number, there = fetch.page(program * how.rows + r, step)

        @pl.when(there)
        def attend() -> None:
            place = number * size + jax.lax.broadcasted_iota(jnp.int32, (*q_ref.shape[1:3], size), 2)
            here = (place >= first[program * how.rows + r]) & (place < end[program * how.rows + r])
            k, v = (buffer[slot, r].astype(q_ref.dtype) for buffer in (k_buffer, v_buffer))
            scores, before = jnp.where(here, capped(_by_head(q_ref[r], k), how.softcap), MASKED), top_ref[r]
            top = jnp.maximum(before, jnp.max(scores, axis=2, keepdims=True))
            keep, probs = jnp.exp(before - top), jnp.where(here, jnp.exp(scores - top[..., :1]), 0.0)
            top_ref[r] = top
            total_ref[r] = total_ref[r] * keep + jnp.sum(probs, axis=2, keepdims=True)
            out_ref[r] = out_ref[r] * keep[..., :1] + _by_head(probs.astype(v.dtype), v)

    def step(number: Array, _: None) -> None:
        slot = jax.lax.rem(began + number, 2)
        last = number + 1 == steps

        @pl.when(~last)
        def fetch_next() -> None:
            fetch.each(program, number + 1, 1 - slot, lambda copy: copy.start())

        @pl.when(last & (program + 1 < programs))
        def fetch_for_the_next_program() -> None:
            fetch.each(program + 1, 0, 1 - slot, lambda copy: copy.start())

        fetch.each(program, number, slot, lambda copy: copy.wait())
        jax.lax.fori_loop(0, how.rows, lambda r, _: row(r, number, slot), None)

    jax.lax.fori_loop(0, steps, step, None)
    total = jnp.maximum(total_ref[...], 1e-30)  # of a row without a page
    level_ref[...] = top_ref[...] + jnp.log(total)
    out_ref[...] = out_ref[...] / total[..., :1]
    slot_ref[0] = jax.lax.rem(began + steps, 2)


def _by_head(a: Array, b: Array) -> Array:
    """[K, M, N] x [K, N, O] -> [K, M, O] in float32; of float32 operands to the last bit."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), precision=precision,
                               preferred_element_type=jnp.float32)
