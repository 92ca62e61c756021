"""Training on single responses, each desirable or not: KTO, APO-zero-unpaired, BCO."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from rlhf_jax import losses
from rlhf_jax.data.example import LABEL
from rlhf_jax.data.mismatch import MISMATCHED
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import PreferenceLoss, Responses, Term
from rlhf_jax.models import Params
from rlhf_jax.training.objectives import Compute, Metrics, masked_mean, slot_sums, token_metrics


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """The losses of single responses, as `losses.PreferenceLoss` says.

    A branch with a label is learned from. One that is mismatched, an answer to another prompt, is only held against the
    reference: KTO's baseline is the mean of their log-ratios over the global batch, through which no gradient passes.
    functions: as those of `Preference`.
    """

    compute: Compute
    loss: PreferenceLoss
    needs_reference: bool = True
    functions: tuple[Any, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", self.loss.functions)

    @property
    def reads(self) -> tuple[str, ...]:
        return (LABEL, MISMATCHED) if self.loss.needs_mismatched else (LABEL,)

    @property
    def whole_batch(self) -> bool:
        return self.loss.compares_pairs

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.target_logps(params, batch)

    def collected(self, outputs: Any, batch: PackedBatch) -> Responses:
        """What the loss reads of the batch's branches."""
        logps, _ = outputs
        label = batch.slot_values[..., 0]
        mismatched = batch.slot_values[..., 1] == 1.0 if self.loss.needs_mismatched else jnp.zeros(label.shape, bool)
        found = Responses(slot_sums(logps, batch), slot_sums(batch.reference_logps, batch), label == 1.0,
                          batch.slot_mask & ~jnp.isnan(label), batch.slot_mask & mismatched)
        return Responses(*(values.reshape(-1) for values in found))

    def collected_terms(self, collected: Responses) -> tuple[Term, ...]:
        """The loss of any number of responses, those of one batch or of many."""
        return losses.response_loss(collected, self.loss)

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        _, stats = outputs
        found = self.collected(outputs, batch)
        rewards = self.loss.beta * (found.logps - found.ref_logps)
        learned = jnp.take_along_axis(found.mask.reshape(batch.slot_mask.shape), batch.target_slot, axis=-1)
        means = token_metrics(stats, batch.target_mask & learned)
        for side, chosen in (("chosen", found.desirable), ("rejected", ~found.desirable)):
            means[f"rewards/{side}"] = masked_mean(rewards, found.mask & chosen)
            means[f"logps/{side}"] = masked_mean(found.logps, found.mask & chosen)
        if self.loss.needs_mismatched:
            means["kl"] = masked_mean(found.logps - found.ref_logps, found.mismatched)
        return self.collected_terms(found), Metrics(means, {})
