"""`kind: function`: a Python function, in the signature people already write reward functions in."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.config.scorer import FunctionScoring
from rlhf_jax.plugins import load_function
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind


def open_scorer(options: FunctionScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> FunctionScorer:
    """The function as a scorer."""
    del mesh, weights
    return FunctionScorer(load_function(options.function), name=name)


KIND = Kind(options=FunctionScoring, open=open_scorer)
