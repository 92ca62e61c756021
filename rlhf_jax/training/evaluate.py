"""Running a model over a whole set of prompt groups without training: eval metrics, log-probs, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.packing import PackedBatch, RowShape, group_length, pack, pack_rows, row_shape
from rlhf_jax.losses import token_logps
from rlhf_jax.models import Params, output_head
from rlhf_jax.parallel import batch_sharding, replicated
from rlhf_jax.training.objectives import Compute, Metrics, Objective
from rlhf_jax.training.step import finish_metrics

Rows = list[list[int]]


def packed_batches(groups: Sequence[PromptGroup], row_length: int, rows_per_batch: int,
                   reference: Sequence[Sequence[np.ndarray]] | None = None, shape: RowShape | None = None,
                   ) -> Iterator[tuple[Rows, PackedBatch]]:
    """All groups, packed best-fit, `rows_per_batch` rows at a time (the last batch padded)."""
    rows = pack_rows([group_length(g) for g in groups], row_length)
    shape = shape or row_shape(groups, rows, row_length)
    for start in range(0, len(rows), rows_per_batch):
        some = rows[start : start + rows_per_batch]
        yield some, pack(groups, some, shape, rows_per_batch, reference)


def map_groups(
    fn: Callable[[Params, PackedBatch], Any], params: Params, groups: Sequence[PromptGroup], mesh: Mesh, *,
    row_length: int, rows_per_batch: int, cut: Callable[..., dict[int, Any]],
    progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """Applies a packed model function to every group, data-parallel over the mesh.

    Args:
      fn: (params, batch [B, ...]) -> array [B, M] or [B, S, ...].
      cut: `unpack_targets` or `unpack_slots`, matching what `fn` returns.
      progress: called with the number of groups done since the last call.

    Returns:
      One result a group, in order.
    """
    compiled = jax.jit(fn, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    results: list[Any] = [None] * len(groups)
    for rows, batch in packed_batches(groups, row_length, rows_per_batch):
        found = cut(np.asarray(compiled(params, batch)), groups, rows)
        for index, value in found.items():
            results[index] = value
        if progress:
            progress(len(found))
    return results


def logps_fn(compute: Compute) -> Callable[[Params, PackedBatch], Any]:
    """(params, batch) -> [B, M] log-probs of the target tokens."""

    def fn(params: Params, batch: PackedBatch) -> Any:
        hidden = compute.hidden(params, batch)
        hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
        return token_logps(hidden, output_head(params), batch.target, chunk=compute.logits_chunk)

    return fn


def evaluate_objective(objective: Objective, params: Params, groups: Sequence[PromptGroup], plan: BatchPlan,
                       mesh: Mesh, *, reference: Sequence[Sequence[np.ndarray]] | None = None) -> dict[str, float]:
    """Loss and metrics of an objective over held-out groups, weighted exactly (no mean of means)."""

    def fn(params: Params, batch: PackedBatch) -> Any:
        terms, metrics = objective.terms(objective.outputs(params, batch), batch)
        sums = {t.name: (t.coefficient, jnp.sum(t.values * t.weights), jnp.sum(t.weights)) for t in terms}
        return sums, metrics

    compiled = jax.jit(fn, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    parts = [jax.device_get(compiled(params, batch))
             for _, batch in packed_batches(groups, plan.row_length, plan.micro_rows, reference)]
    loss = 0.0
    for name, (coefficient, _, _) in parts[0][0].items():
        weight = sum(float(sums[name][2]) for sums, _ in parts)
        loss += float(coefficient) * sum(float(sums[name][1]) for sums, _ in parts) / max(weight, 1.0)
    means = jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *(m.means for _, m in parts))
    maxima = jax.tree.map(lambda *xs: np.max(xs), *(m.maxima for _, m in parts))
    finished = finish_metrics(Metrics(means, maxima))
    return {"loss": loss, **{name: float(value) for name, value in finished.items()}}
