"""An ensemble of reward models as a scorer: one pass, and what its members say together as named numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax import losses
from rlhf_jax.config.scorer import Aggregate
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.losses.reward import EnsembleScores
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.parallel import Bound, bound
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.training.objectives import Compute


def member_labels(count: int) -> tuple[str, ...]:
    """Names of the outputs of an ensemble in one checkpoint."""
    return tuple(f"member-{i}" for i in range(count))


class EnsembleScorer(BradleyTerryScorer):
    """Scores with all outputs of one or several classifiers, the members, which read the same rows.

    Stored beside the score: `mean`, `worst_case`, `uncertainty_weighted` and `std` of the members, and each member's
    own, `member-0` ...

    Args:
      params: the weights, one tree for each of `configs`, by its place ("0", "1", ...).
      aggregate: which of them is the score. uncertainty_weight: what the standard deviation counts.

    Raises:
      CheckpointError: if a model is no plain classifier, its outputs are different things, heads are read at different
        places, or there is one member.
    """

    def __init__(self, params: Params | Callable[[], Params], configs: Sequence[DecoderConfig],
                 renderer: Renderer, mesh: Mesh, *, aggregate: Aggregate = "mean", uncertainty_weight: float = 1.0,
                 **options: Any):
        for config in configs:
            if not config.is_classifier or config.gate is not None:
                raise CheckpointError("the members of an ensemble are plain reward models, and one of these is "
                                      f"{'a gated one (ArmoRM)' if config.is_classifier else 'a language model'}")
            if config.num_labels > 1 and config.labels and config.labels != member_labels(config.num_labels):
                raise CheckpointError(f"the outputs of this checkpoint are {', '.join(config.labels)}: different "
                                      "things, and no members of an ensemble, which all say how good a response is; "
                                      "set the kind that it was trained as")
        if len(places := {(config.score_at, config.pad_token_id) for config in configs}) > 1:
            raise CheckpointError("the members of an ensemble read the same tokens, and these are read at different "
                                  f"places or pad with different tokens: {sorted(map(str, places))}; set score_at")
        self.members = sum(config.num_labels for config in configs)
        if self.members < 2:
            raise CheckpointError("an ensemble has at least two members and this checkpoint is one reward model; name "
                                  "others in members, or set kind: bradley_terry")
        self._aggregate, self._uncertainty_weight = aggregate, uncertainty_weight
        self._computes = tuple(Compute(config, mesh=mesh) for config in configs)
        super().__init__(params, configs[0], renderer, mesh, **options)

    def _check(self, config: DecoderConfig) -> None:
        """All of them were looked at."""

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        return ("", *EnsembleScores._fields, *member_labels(self.members))

    def _backbone(self, params: Any) -> Params:
        """Those of the first checkpoint."""
        return params["0"]  # its states are what all heads of one checkpoint read

    def _outputs(self) -> Bound:
        return bound(_ensemble_outputs, self._computes, self._aggregate, self._uncertainty_weight)


def _ensemble_outputs(computes: tuple[Compute, ...], aggregate: Aggregate, uncertainty_weight: float, params: Params,
                      batch: PackedBatch) -> Array:
    """[B, S, 1 + 4 + members]: the score, what the members say together, and each one's own."""
    scores = [compute.slot_scores(params[str(place)], batch) for place, compute in enumerate(computes)]
    members = jnp.concatenate(scores, axis=-1)
    found = losses.ensemble_scores(members, uncertainty_weight)
    return jnp.concatenate([jnp.stack([getattr(found, aggregate), *found], axis=-1), members], axis=-1)
