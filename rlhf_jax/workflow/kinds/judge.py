"""`kind: judge`: a served language model that is asked which of two answers is better, or how good one is."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from rlhf_jax.config.scorer import JudgeScoring
from rlhf_jax.scoring import JudgeScorer, RatingScorer
from rlhf_jax.scoring.rubric import read_rubric
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind
from rlhf_jax.workflow.remote import open_client
from rlhf_jax.workflow.stage import fingerprint


def open_scorer(options: JudgeScoring, mesh: Mesh, name: str, weights: GivenWeights = None
                ) -> JudgeScorer | RatingScorer:
    """The judge as a scorer; nothing is asked yet."""
    del mesh, weights
    rubric = read_rubric(options.rubric, options.judges == "pairs")
    settings: dict[str, Any] = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    key = fingerprint({"server": options.server.asked, "rubric": rubric, "settings": settings, "judges": options.judges,
                       "method": options.method, "endpoint": options.endpoint})
    asked: dict[str, Any] = {"client": open_client(options.server), "model": options.server.model, "rubric": rubric,
                             "name": name, "key": key, "settings": settings, "endpoint": options.endpoint}
    return RatingScorer(**asked) if options.judges == "single" else JudgeScorer(**asked, method=options.method)


KIND = Kind(options=JudgeScoring, open=open_scorer)
