"""Attention over packed rows by JAX's splash kernel, for TPUs: blocks in which nothing is seen are never fetched.

The kernel takes the rows' own mask (its "dynamic" form), cut into blocks once a batch and shared by all layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.sharding import Mesh, PartitionSpec

from rlhf_jax.models.attention import RowAttention, RowIds, cut_by_heads, mesh_around, padding_sees_itself

LANES = 128
"""The kernel's blocks are multiples of it, and so must be a row's tokens on each device."""
_BLOCKS = (512, 256, LANES)


class RowPlaces(NamedTuple):
    """Mesh axes over which the rows, the positions of a row, and the heads are cut."""

    rows: tuple[str, ...] = ("data", "fsdp")
    positions: str = "context"
    heads: str = "tensor"


def splash_rows(mesh: Mesh, length: int, softcap: float | None, *, places: RowPlaces | None = None,
                interpret: bool = False) -> RowAttention:
    """The splash kernel on every device of `mesh`; queries stay where they are, keys and values are gathered over the
    context axis.

    Args:
      length: tokens of a row. softcap: of the attention scores. interpret: run the kernel's Python instead of
        compiling it, for tests on a CPU.

    Raises:
      ValueError: if a device's part of a row is no multiple of 128 tokens.
    """
    places = places or RowPlaces()
    cuts = mesh.shape[places.positions]
    part = length // cuts
    if length % cuts or part % LANES:
        raise ValueError(f"row_length = {length} over {cuts} device(s) of the {places.positions!r} axis is no multiple "
                         f"of {LANES}, which attention on a TPU needs; set row_length to a multiple of {LANES * cuts}")
    size = next(block for block in _BLOCKS if part % block == 0)
    sizes = splash.BlockSizes(block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
                              block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size)
    how: dict[str, Any] = {"block_sizes": sizes, "attn_logits_soft_cap": softcap, "interpret": interpret}
    of_rows = PartitionSpec(places.rows, None, places.positions)

    def prepare(ids: RowIds, window: int | None) -> Any:
        """The blocks of each row, all heads alike; padding sees itself, so that its sums are finite."""

        def blocks_of(mask: Array) -> tuple[Any, ...]:
            kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=cuts, **how)
            return tuple(part._replace(is_dynamic_mask=None) for part in kernel.tree_flatten()[0])

        return jax.vmap(blocks_of)(padding_sees_itself(ids, window)[:, None])

    def attend_row(q: Array, k: Array, v: Array, blocks: tuple[Any, ...]) -> Array:
        kernel = splash.SplashAttentionKernel(
            *(part._replace(is_dynamic_mask=True) for part in blocks), is_mqa=False, save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE, residual_checkpoint_name=None, mask_function=None, **how)
        out = kernel(q, k, v)
        assert isinstance(out, Array)  # no residuals were asked for
        return out

    def attend(q: Array, k: Array, v: Array, blocks: Any, *, scale: float, softcap: float | None) -> Array:
        del softcap  # `prepare` and the kernel have it
        split, k, v = cut_by_heads(mesh, places.heads, q, k, v)

        def on_device(*rows: Any) -> Array:
            return jax.lax.map(lambda row: attend_row(*row), rows)

        gathered = PartitionSpec(places.rows, split)
        queries = PartitionSpec(places.rows, split, places.positions)
        by_head = [jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v)]
        out = jax.shard_map(on_device, mesh=mesh_around(mesh), in_specs=(queries, gathered, gathered, of_rows),
                            out_specs=queries, check_vma=False)(*by_head, blocks)
        return jnp.swapaxes(out, 1, 2)

    return RowAttention(prepare, attend)
