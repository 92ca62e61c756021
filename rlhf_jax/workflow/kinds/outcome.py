"""`kind: outcome`: a scalar head whose output is the log-odds that a solution is right (RLHFlow's scalar ORM)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rlhf_jax.config.scorer import OutcomeScoring
from rlhf_jax.config.training import OutcomeOptions
from rlhf_jax.data.packing import PackedBatch
from rlhf_jax.models import CheckpointError, DecoderConfig, Params, as_classifier
from rlhf_jax.parallel import Bound, bound
from rlhf_jax.scoring import BradleyTerryScorer
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.training.outcome import Outcome
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model, read_at
from rlhf_jax.workflow.kinds.bradley_terry import as_they_are
from rlhf_jax.workflow.reward_model import reward_config

LABELS = ("correct",)
"""The name of the one output, by which such a model is known."""


class OutcomeScorer(BradleyTerryScorer):
    """The probability that a solution is right as the score, and its logit beside it."""

    probabilities: Literal[True] = True

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        return ("", "logit")

    def _outputs(self) -> Bound:
        return bound(_probability, self._compute)


def _probability(compute: Compute, params: Params, batch: PackedBatch) -> Array:
    """[B, S, 2]: the probability and its logit."""
    logits = compute.slot_scores(params, batch)
    return jnp.concatenate([jax.nn.sigmoid(logits), logits], axis=-1)


def outcome_config(config: DecoderConfig) -> DecoderConfig:
    """The shape of an outcome model on a language model's backbone; a classifier keeps its own."""
    shape = reward_config(config)
    return shape if config.is_classifier else dataclasses.replace(shape, labels=LABELS)


def open_scorer(options: OutcomeScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> OutcomeScorer:
    """The outcome model as a scorer."""
    model = open_model(options, mesh, weights)
    if model.config.num_labels != 1:
        raise CheckpointError(f"an outcome model has one output and this checkpoint has {model.config.num_labels}; of "
                              "a language model set kind: outcome_generative")
    return OutcomeScorer(model.weights, read_at(model.config, options.score_at), model.renderer, mesh, name=name,
                         key=model.key)


def with_head(options: OutcomeOptions, params: Params, config: DecoderConfig) -> tuple[Params, DecoderConfig]:
    """A language model with a fresh head, or the outcome model it already is. config: the reward model's."""
    if "score" not in params:
        config = dataclasses.replace(config, labels=LABELS)
        return as_classifier(params, jax.random.key(options.train.seed), config), config
    if config.labels != LABELS:
        raise ValueError("an outcome model has one output, `correct`, and this checkpoint is another classifier of "
                         f"{config.num_labels} output(s); start from a language model or from an outcome model")
    return params, config


def objective(options: OutcomeOptions) -> Callable[[Compute], Objective]:
    del options
    return Outcome


KIND = Kind(
    options=OutcomeScoring, open=open_scorer, shape=outcome_config,
    passes=lambda options, responses: Passes(1, responses),
    outputs=lambda compute: compute.slot_scores,
    training=TrainedKind(options=OutcomeOptions, examples=as_they_are, model=with_head,
                         shape=lambda options, config: outcome_config(config), objective=objective, responses=1,
                         quoted=0, reads_head=True, rows="unpaired",
                         served=lambda options, model: OutcomeScoring(model)))
