"""A regression of several ratings as a scorer: each a number by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.parallel import Bound, bound
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.training.objectives import Compute


class RegressionScorer(BradleyTerryScorer):
    """Scores with one of the regressed ratings, or with the mean of all; beside the score stands each by its name.

    Args:
      objective: name of the output that is the score; None for the mean of all.

    Raises:
      CheckpointError: if the model is no classifier, has a gate, or has no such output.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh, *,
                 objective: str | None = None, **options: Any):
        self._objective = objective
        super().__init__(params, config, renderer, mesh, **options)

    def _check(self, config: DecoderConfig) -> None:
        if not config.is_classifier or config.gate is not None:
            raise CheckpointError("a regression is a sequence classifier with an output for each rating, and this "
                                  "checkpoint " + ("is a language model; for a pairwise preference model set kind: "
                                                   "pairwise" if config.gate is None else "weighs them by a gate "
                                                   "(ArmoRM's layout); set kind: multi_objective"))
        if self._objective is not None and self._objective not in config.output_names:
            raise CheckpointError(f"objective = {self._objective!r} is no output of this checkpoint; it has "
                                  f"{', '.join(config.output_names)}")

    def _outputs(self) -> Bound:
        return bound(_rated, self._compute, self._objective)

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        return ("", *config.output_names)


def _rated(compute: Compute, objective: str | None, params: Params, batch: PackedBatch) -> Array:
    """[B, S, 1 + outputs]: the score, which is one of the outputs or their mean, and all of them."""
    outputs = compute.slot_scores(params, batch)
    names = compute.config.output_names
    score = jnp.mean(outputs, axis=-1) if objective is None else outputs[..., names.index(objective)]
    return jnp.concatenate([score[..., None], outputs], axis=-1)
