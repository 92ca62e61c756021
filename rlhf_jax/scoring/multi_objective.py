"""ArmoRM as a scorer: many regressed objectives, weighed by a gate that reads the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.models import CheckpointError, DecoderConfig, Params, gated_scores
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer


def gate_positions(batch: PackedBatch, stop_id: int) -> Array:
    """[B, S] place in the row of the last end of turn before each branch; -1 where its prompt has none."""
    group = jnp.take_along_axis(batch.group_ids, batch.slot_end, axis=1)  # [B, S]
    ends = (batch.tokens == stop_id) & (batch.branch_ids == 0)
    of_slot = ends[:, None, :] & (batch.group_ids[:, None, :] == group[:, :, None])
    return jnp.max(jnp.where(of_slot, jnp.arange(batch.tokens.shape[1]), -1), axis=-1)


class MultiObjectiveScorer(BradleyTerryScorer):
    """Scores with ArmoRM's gated sum of objectives (arXiv 2406.12845).

    The gate reads the hidden state where the last turn before the response ends, at the template's stop token.
    Stored beside the score: each objective's reward, by its name, and what it counts, as `coefficient/NAME`; the score
    is the sum over objectives of coefficient x reward.

    Raises:
      CheckpointError: if the checkpoint has no gate.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh,
                 **options: Any):
        self._stop = renderer.end_of_turn.stop_id
        super().__init__(params, config, renderer, mesh, **options)

    def _check(self, config: DecoderConfig) -> None:
        if config.gate is None:
            raise CheckpointError("a multi-objective scorer needs a regression layer under a gate (ArmoRM's layout), "
                                  "and this checkpoint has no gate; for a plain reward model set kind: bradley_terry")

    def _outputs(self, params: Params, batch: Any) -> Any:
        hidden = self._compute.hidden(params, batch)
        at = gate_positions(batch, self._stop)
        response = jnp.take_along_axis(hidden, batch.slot_end[..., None], axis=1)
        prompt = jnp.take_along_axis(hidden, jnp.maximum(at, 0)[..., None], axis=1)
        found = gated_scores(params, self._compute.config, response, prompt)
        numbers = jnp.concatenate([found.score[..., None], found.rewards, found.coefficients], axis=-1)
        return jnp.where((at < 0)[..., None], jnp.nan, numbers)

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        return ("", *config.output_names, *(f"coefficient/{name}" for name in config.output_names))
