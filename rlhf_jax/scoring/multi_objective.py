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
from rlhf_jax.parallel import Bound, bound
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.scoring.states import answer_states, gate_states
from rlhf_jax.training.objectives import Compute


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

    def _outputs(self) -> Bound:
        return bound(_gated_outputs, self._compute, self._stop)

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        return ("", *config.output_names, *(f"coefficient/{name}" for name in config.output_names))


def _gated_outputs(compute: Compute, stop_id: int, params: Params, batch: PackedBatch) -> Array:
    """[B, S, 1 + 2 x objectives]: the score, the rewards, what each counts."""
    hidden = compute.hidden(params, batch)
    response, prompt = answer_states(hidden, batch), gate_states(hidden, batch, stop_id)
    found = gated_scores(params, compute.config, response, prompt)
    return jnp.concatenate([found.score[..., None], found.rewards, found.coefficients], axis=-1)
