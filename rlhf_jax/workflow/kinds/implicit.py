"""`kind: implicit`: a policy against its reference, as DPO's implicit reward (arXiv 2305.18290, section 4)."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.scorer import ImplicitScoring
from rlhf_jax.scoring import ImplicitScorer
from rlhf_jax.training.evaluate import logps_fn
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, find_model_of, open_model
from rlhf_jax.workflow.stage import fingerprint


def open_scorer(options: ImplicitScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> ImplicitScorer:
    """Both models as a scorer; the reference is given the policy's tokens."""
    policy, reference = find_model_of(options.model), Checkpoint.find(options.reference_model)
    model = open_model(dataclasses.replace(options, reference_model=""), mesh, weights)
    check_vocabularies(policy, reference, "The reference is asked for the probability of the policy's tokens; give a "
                       "reference_model with the policy's tokenizer")

    def key() -> str:
        return fingerprint({"policy": model.key(), "reference": reference.key})

    return ImplicitScorer(model.weights, model.config, partial(reference.params, mesh, jnp.dtype(options.model.dtype)),
                          reference.config, model.renderer, mesh, name=name, key=key, beta=options.beta,
                          over=options.over)


KIND = Kind(options=ImplicitScoring, open=open_scorer, outputs=logps_fn,
            passes=lambda options, responses: Passes(2, responses))  # the reference is taken to have the policy's shape
