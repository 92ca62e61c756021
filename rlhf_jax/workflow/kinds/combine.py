"""`kind: combine`: a weighted sum of numbers that are stored already, or that another scorer gives first."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.config.scorer import CombineScoring
from rlhf_jax.scoring.combine import CombineScorer
from rlhf_jax.workflow import kinds
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind
from rlhf_jax.workflow.stage import fingerprint


def open_scorer(options: CombineScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> CombineScorer:
    """The sum as a scorer, over the scorer underneath if there is one."""
    below = None if options.scorer is None else kinds.kind_of(options.scorer).open(options.scorer, mesh, name, weights)
    return CombineScorer(options.weights, name=name, scorer=below,
                         key=fingerprint({"weights": dict(options.weights), "as": name}))


KIND = Kind(options=CombineScoring, open=open_scorer)
