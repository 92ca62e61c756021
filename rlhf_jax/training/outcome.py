"""A scalar outcome model's objective: is the whole solution right?"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from rlhf_jax import losses
from rlhf_jax.data.example import LABEL
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import Term
from rlhf_jax.models import Params
from rlhf_jax.training.objectives import Compute, Metrics, masked_mean


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Binary cross-entropy of a response's label given the head's logit, in float32; the mean over responses."""

    compute: Compute
    needs_reference: bool = False
    reads: tuple[str, ...] = (LABEL,)
    whole_batch: bool = False

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.slot_scores(params, batch)[..., 0]

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        label = batch.slot_values[..., 0]
        mask = batch.slot_mask & ~jnp.isnan(label)
        values = losses.binary_cross_entropy(outputs, jnp.where(mask, label, 0.0))
        term = Term("outcome", 1.0, jnp.where(mask, values, 0.0), mask.astype(jnp.float32))
        right = (outputs > 0) == (label > 0.5)
        means = {"accuracy": masked_mean(right, mask), "mean_reward": masked_mean(outputs, mask)}
        return (term,), Metrics(means, {})
