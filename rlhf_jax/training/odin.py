"""ODIN's objective: two heads share what a Bradley-Terry model ranks by, one of them takes the length (2402.07319)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from rlhf_jax import losses
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import Term
from rlhf_jax.models import Params
from rlhf_jax.training.objectives import Compute, Metrics, gather_pairs

LENGTH_HEAD, QUALITY_HEAD = 0, 1
"""Which output is which, as in the published code; the quality alone is used."""
LENGTH = "length"
"""The number of a response that the length head shall follow."""


class Collected(NamedTuple):
    """chosen, rejected: [N, 2] outputs of pairs. pair_mask: [N]. outputs: [R, 2] of responses. lengths, mask: [R].
    overlap: [1] of the heads."""

    chosen: Array
    rejected: Array
    pair_mask: Array
    outputs: Array
    lengths: Array
    mask: Array
    overlap: Array


@dataclasses.dataclass(frozen=True)
class Odin:
    """-log sigma of the pair's difference in r0 + r1, plus the terms that keep length in r0 and out of r1.

    The correlations are those of the whole global batch, with its whole gradient; the ranking loss is per pair.

    Attributes:
      length_coefficient: of (1 - rho(length, r0)) + |rho(length, r1)|. orthogonal_coefficient: of |<w0, w1>|.
    """

    compute: Compute
    length_coefficient: float = 1.0
    orthogonal_coefficient: float = 1.0
    needs_reference: bool = False
    reads: tuple[str, ...] = (LENGTH,)
    whole_batch: bool = True

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.slot_scores(params, batch), losses.odin_orthogonality(params["score"])

    def collected(self, outputs: Any, batch: PackedBatch) -> Collected:
        """What the loss reads of the batch; a response without a length takes no part in the correlations."""
        scores, overlap = outputs
        sides = [gather_pairs(scores[..., head], batch) for head in (LENGTH_HEAD, QUALITY_HEAD)]
        chosen, rejected = (jnp.stack(side, axis=-1) for side in zip(*sides, strict=True))
        lengths = batch.slot_values[..., 0].reshape(-1)
        return Collected(chosen, rejected, batch.pair_mask.reshape(-1), scores.reshape(-1, 2), lengths,
                         batch.slot_mask.reshape(-1) & ~jnp.isnan(lengths), overlap[None])

    def collected_terms(self, collected: Collected) -> tuple[Term, ...]:
        """The loss of any number of rows, those of one batch or of many."""
        one, c = jnp.ones(1, jnp.float32), collected
        ranking = losses.bradley_terry(jnp.sum(c.chosen, axis=-1), jnp.sum(c.rejected, axis=-1))
        length = losses.odin_length(c.lengths, c.outputs[:, LENGTH_HEAD], c.outputs[:, QUALITY_HEAD], c.mask)
        return (Term("bradley_terry", 1.0, jnp.where(c.pair_mask, ranking, 0.0), c.pair_mask.astype(jnp.float32)),
                Term("length", self.length_coefficient, length[None], one),
                Term("orthogonality", self.orthogonal_coefficient, jnp.mean(c.overlap)[None], one))

    def collected_metrics(self, collected: Collected) -> Mapping[str, tuple[Array, Array]]:
        """Correlation of each head with the length, over all that was collected."""
        one, c = jnp.ones((), jnp.float32), collected
        rho = {name: losses.pearson(c.lengths, c.outputs[:, head], c.mask)
               for name, head in (("length_head", LENGTH_HEAD), ("quality_head", QUALITY_HEAD))}
        return {f"correlation/{name}": (value, one) for name, value in rho.items()}

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        c = self.collected(outputs, batch)
        weights = c.pair_mask.astype(jnp.float32)
        gap = c.chosen - c.rejected

        def mean(values: Array) -> tuple[Array, Array]:
            return jnp.sum(values.astype(jnp.float32) * weights), jnp.sum(weights)

        means = {"accuracy": mean(gap[:, QUALITY_HEAD] > 0), "margin": mean(gap[:, QUALITY_HEAD]),
                 "accuracy_of_both_heads": mean(jnp.sum(gap, axis=-1) > 0),
                 "orthogonality": (jnp.mean(c.overlap), jnp.ones((), jnp.float32))}
        return self.collected_terms(c), Metrics(means | dict(self.collected_metrics(c)), {})
