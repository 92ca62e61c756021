"""Hidden states that heads and gates read: at the end of an answer, and where its prompt's last turn ends."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.config.probe import Pool
from rlhf_jax.data.packing import PackedBatch, unpack_slots
from rlhf_jax.models import Params
from rlhf_jax.parallel import bound
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute


def gate_positions(batch: PackedBatch, stop_id: int) -> Array:
    """[B, S] place in the row of the last end of turn before each branch; -1 where its prompt has none."""
    group = jnp.take_along_axis(batch.group_ids, batch.slot_end, axis=1)  # [B, S]
    ends = (batch.tokens == stop_id) & (batch.branch_ids == 0)
    of_slot = ends[:, None, :] & (batch.group_ids[:, None, :] == group[:, :, None])
    return jnp.max(jnp.where(of_slot, jnp.arange(batch.tokens.shape[1]), -1), axis=-1)


def answer_states(hidden: Array, batch: PackedBatch, pool: Pool = "last") -> Array:
    """[B, S, D] of each branch: the state of its last token, or the mean over its tokens; hidden [B, T, D]."""
    if pool == "last":
        return jnp.take_along_axis(hidden, batch.slot_end[..., None], axis=1)
    group, branch = (jnp.take_along_axis(ids, batch.slot_end, axis=1) for ids in (batch.group_ids, batch.branch_ids))
    own = (batch.group_ids[:, None, :] == group[..., None]) & (batch.branch_ids[:, None, :] == branch[..., None])
    weights = own.astype(jnp.float32)
    sums = jnp.einsum("bst,btd->bsd", weights, hidden.astype(jnp.float32))
    return sums / jnp.sum(weights, axis=-1, keepdims=True)


def gate_states(hidden: Array, batch: PackedBatch, stop_id: int | None) -> Array:
    """[B, S, D] states where the gate reads each branch's prompt; NaN where no turn ends. hidden: [B, T, D]."""
    if stop_id is None:
        return jnp.full((*batch.slot_end.shape, hidden.shape[-1]), jnp.nan)
    at = gate_positions(batch, stop_id)[..., None]
    return jnp.where(at < 0, jnp.nan, jnp.take_along_axis(hidden, jnp.maximum(at, 0), axis=1).astype(jnp.float32))


def _states(compute: Compute, stop_id: int | None, pool: Pool, params: Params, batch: PackedBatch) -> Array:
    hidden = compute.hidden(params, batch)
    answers = answer_states(hidden, batch, pool).astype(jnp.float32)
    return jnp.stack([answers, gate_states(hidden, batch, stop_id)], axis=2)


def states_map(compute: Compute, mesh: Mesh, stop_id: int | None, pool: Pool = "last") -> PackedMap:
    """params, groups -> per group and response [2, D] float32: the answer's state, and its prompt's for the gate."""
    return PackedMap(bound(_states, compute, stop_id, pool), mesh, unpack_slots)
