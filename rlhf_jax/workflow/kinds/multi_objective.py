"""`kind: multi_objective`: ArmoRM, many regressed objectives weighed by a gate (arXiv 2406.12845)."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.config.scorer import MultiObjectiveScoring
from rlhf_jax.scoring import MultiObjectiveScorer
from rlhf_jax.workflow.kinds.base import Kind, Passes, open_model, read_at
from rlhf_jax.workflow.reward_model import reward_config


def open_scorer(options: MultiObjectiveScoring, mesh: Mesh, name: str) -> MultiObjectiveScorer:
    """The model as a scorer."""
    model = open_model(options, mesh)
    return MultiObjectiveScorer(model.weights, read_at(model.config, options.score_at), model.renderer, mesh, name=name,
                                key=model.key)


KIND = Kind(options=MultiObjectiveScoring, open=open_scorer, shape=reward_config,
            passes=lambda options, responses: Passes(1, responses),
            outputs=lambda compute: compute.slot_scores)  # the gate's product is too small to count
