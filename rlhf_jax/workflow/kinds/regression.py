"""`kind: regression`: a reward model with an output for each of several ratings (as in DPA, arXiv 2402.18571)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config.scorer import RegressionScoring
from rlhf_jax.config.training import RegressionOptions
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.example import with_responses
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.ratings import parse_objectives, rating_table
from rlhf_jax.data.rows import Example
from rlhf_jax.models import DecoderConfig, Params, as_classifier
from rlhf_jax.scoring.regression import RegressionScorer
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.training.regression import Regression
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model, read_at
from rlhf_jax.workflow.reward_model import reward_config

ANSWERS = 4
"""Of a graded row, for a plan: as many as UltraFeedback's have."""


def open_scorer(options: RegressionScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> RegressionScorer:
    """The regression as a scorer."""
    model = open_model(options, mesh, weights)
    return RegressionScorer(model.weights, read_at(model.config, options.score_at), model.renderer, mesh, name=name,
                            key=model.key, objective=options.objective)


def outputs_of(options: RegressionOptions) -> tuple[str, ...]:
    """Names of the outputs. Raises ValueError as `parse_objectives`."""
    return tuple(objective.name for objective in parse_objectives(options.objectives))


def regression_config(options: RegressionOptions, config: DecoderConfig) -> DecoderConfig:
    """The shape of the regression on a model's backbone."""
    names = outputs_of(options)
    return dataclasses.replace(reward_config(config), num_labels=len(names), labels=names)


def with_outputs(options: RegressionOptions, params: Params, config: DecoderConfig) -> tuple[Params, DecoderConfig]:
    """The regression of the same ratings that it already is, or any other model's backbone under fresh heads.

    Raises:
      ValueError: the model weighs objectives by a gate, which would stand over other ones.
    """
    if config.gate is not None:
        raise ValueError("this checkpoint weighs its objectives by a gate (ArmoRM's layout); start from the model that "
                         "it was made from")
    shape = regression_config(options, config)
    if "score" in params and config.output_names == shape.labels:
        return params, config
    return as_classifier(params, jax.random.key(options.train.seed), shape), shape


def with_ratings(options: RegressionOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
                 ) -> Sequence[Example]:
    """The answers that have one of the ratings, which are in 0 to 1 and called as the outputs.

    Raises:
      ValueError: an objective that no row has.
    """
    del renderer
    objectives = parse_objectives(options.objectives)
    names = {name for example in examples for some in example.scores for name in some}
    if lacking := [objective.number for objective in objectives if objective.number not in names]:
        raise ValueError(f"no row has a rating {', '.join(lacking)}; there are {', '.join(sorted(names)) or 'none'}. "
                         "Name those in objectives, or give graded rows that have them")
    kept = OnDisk[Example]()
    for example in examples:
        scores = example.scores or ({},) * len(example.responses)
        try:
            there = ~np.isnan(table := rating_table(scores, objectives))
        except BadRow as error:
            funnel.refuse(example.origin, error)
            continue
        rated = np.flatnonzero(there.any(1)).tolist()
        if not rated:
            funnel.dropped["no_rating"] += 1
            continue
        funnel.notes.update({"unrated_responses": len(there) - len(rated)} if len(rated) < len(there) else {})
        numbers = tuple({objective.name: float(value) for objective, value in zip(objectives, row, strict=True)
                         if not np.isnan(value)} for row in table)
        kept.append(with_responses(dataclasses.replace(example, scores=numbers), rated))
    return kept


def objective(options: RegressionOptions) -> Callable[[Compute], Objective]:
    return partial(Regression, reads=outputs_of(options))


KIND = Kind(
    options=RegressionScoring, open=open_scorer, shape=reward_config,
    passes=lambda options, responses: Passes(1, responses),
    outputs=lambda compute: compute.slot_scores,
    training=TrainedKind(options=RegressionOptions, rows="graded", examples=with_ratings, model=with_outputs,
                         shape=regression_config, objective=objective, responses=ANSWERS, quoted=0, reads_head=True,
                         served=lambda options, model: RegressionScoring(model)))
