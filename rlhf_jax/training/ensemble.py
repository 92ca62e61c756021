"""An ensemble of reward heads on one backbone: each a Bradley-Terry model of its own draw of the prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from rlhf_jax import losses
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses import Term
from rlhf_jax.models import Params
from rlhf_jax.training.objectives import Compute, Metrics, gather_pairs, masked_mean


def draw_name(member: int) -> str:
    """The number of a response that says how often a member draws its prompt."""
    return f"draws/{member}"


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """-log sigma(r_chosen - r_rejected) of every member, a pair counted as often as the member drew its prompt.

    Attributes:
      members: heads.
      bootstrap: pairs count as the numbers `draw_name` of their responses say; else once for every member.
      center_rewards_coefficient: of (r_chosen + r_rejected)^2, which keeps the members' scores around one place: a
        Bradley-Terry loss leaves each its own, and how far members lie apart would mean nothing.
    """

    compute: Compute
    members: int
    bootstrap: bool = True
    center_rewards_coefficient: float = 0.01
    needs_reference: bool = False
    whole_batch: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(map(draw_name, range(self.members))) if self.bootstrap else ()

    def outputs(self, params: Params, batch: PackedBatch) -> Any:
        return self.compute.slot_scores(params, batch)

    def terms(self, outputs: Any, batch: PackedBatch) -> tuple[tuple[Term, ...], Metrics]:
        chosen, rejected = _sides(outputs, batch)  # [N, members]
        mask = batch.pair_mask.reshape(-1)
        draws = _sides(batch.slot_values, batch)[0] if self.bootstrap else jnp.ones_like(chosen)
        weights = jnp.where(mask[:, None], draws, 0.0)

        def term(name: str, coefficient: float, values: Array) -> Term:
            return Term(name, coefficient, jnp.where(mask[:, None], values, 0.0), weights)

        terms = [term("bradley_terry", 1.0, losses.bradley_terry(chosen, rejected))]
        if self.center_rewards_coefficient:
            terms.append(term("centering", self.center_rewards_coefficient, losses.centering(chosen, rejected)))
        gap = losses.ensemble_scores(chosen - rejected)
        means = {"accuracy": masked_mean(gap.mean > 0, mask), "margin": masked_mean(gap.mean, mask),
                 "accuracy_of_a_member": masked_mean(jnp.mean(chosen > rejected, axis=-1), mask),
                 "disagreement": masked_mean(gap.std, mask)}
        return tuple(terms), Metrics(means, {})


def _sides(values: Array, batch: PackedBatch) -> tuple[Array, Array]:
    """[N, K] of chosen and rejected, of [B, S, K] values."""
    sides = [gather_pairs(values[..., k], batch) for k in range(values.shape[-1])]
    chosen, rejected = (jnp.stack(side, axis=-1) for side in zip(*sides, strict=True))
    return chosen, rejected
