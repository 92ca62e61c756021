"""The regression of several ratings at once: squared error over the ratings that there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from rlhf_jax import losses
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import Term
from rlhf_jax.models import Params
from rlhf_jax.training.objectives import Compute, Metrics, masked_mean


@dataclasses.dataclass(frozen=True)
class Regression:
    """Mean squared error over all ratings of the global batch, each counting the same; what nobody rated is no error.

    Source: the reward model of DPA (arXiv 2402.18571, section 3.1), and of ArmoRM (arXiv 2406.12845, section 3.1).

    Attributes:
      reads: the ratings by name, one for each output of the model, in its order.
    """

    compute: Compute
    reads: tuple[str, ...]
    needs_reference: bool = False
    whole_batch: bool = False

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        """[B, S, K]."""
        return self.compute.slot_scores(params, batch)

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        """The error, and of each rating `mse/NAME`."""
        errors, rated = losses.squared_error(outputs, batch.slot_values)
        rated = rated & batch.slot_mask[..., None]
        means = {f"mse/{name}": masked_mean(errors[..., i], rated[..., i]) for i, name in enumerate(self.reads)}
        return (Term("mse", 1.0, errors, rated.astype(jnp.float32)),), Metrics(means, {})
