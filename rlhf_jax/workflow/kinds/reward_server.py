"""`kind: reward_server`: a reward model that a server holds, asked over HTTP."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.config.scorer import RewardServerScoring
from rlhf_jax.scoring import RewardServerScorer
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind
from rlhf_jax.workflow.remote import open_client
from rlhf_jax.workflow.stage import fingerprint


def open_scorer(options: RewardServerScoring, mesh: Mesh, name: str, weights: GivenWeights = None
                ) -> RewardServerScorer:
    """The served model as a scorer; nothing is asked yet."""
    del mesh, weights
    key = fingerprint({"server": options.server.asked, "endpoint": options.endpoint, "output": options.output})
    return RewardServerScorer(open_client(options.server), options.server.model, endpoint=options.endpoint,
                              output=options.output, name=name, key=key)


KIND = Kind(options=RewardServerScoring, open=open_scorer)
