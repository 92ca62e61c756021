"""`kind: bradley_terry`: a scalar head on a language model's backbone (RLHF Workflow, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax.sharding import Mesh

from rlhf_jax.config.scorer import BradleyTerryScoring
from rlhf_jax.config.training import BradleyTerryOptions
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.models import DecoderConfig, Params, as_classifier
from rlhf_jax.scoring import BradleyTerryScorer
from rlhf_jax.training.objectives import BradleyTerry, Compute, Objective
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model, read_at
from rlhf_jax.workflow.reward_model import reward_config


def open_scorer(options: BradleyTerryScoring, mesh: Mesh, name: str, weights: GivenWeights = None
                ) -> BradleyTerryScorer:
    """The reward model as a scorer."""
    model = open_model(options, mesh, weights)
    return BradleyTerryScorer(model.weights, read_at(model.config, options.score_at), model.renderer, mesh, name=name,
                              key=model.key, output=options.output)


def as_reward_model(options: BradleyTerryOptions, params: Params, config: DecoderConfig
                    ) -> tuple[Params, DecoderConfig]:
    """A language model with a fresh scalar head, or the reward model it already is. config: the reward model's."""
    if config.num_labels != 1:
        raise ValueError(f"a Bradley-Terry model has one output and this checkpoint has {config.num_labels}; start "
                         "from a language model or from a reward model with one output")
    key = jax.random.key(options.train.seed)
    return (params if "score" in params else as_classifier(params, key, config)), config


def objective(options: BradleyTerryOptions) -> Callable[[Compute], Objective]:
    return partial(BradleyTerry, center_rewards_coefficient=options.center_rewards_coefficient,
                   use_margin=options.use_margin)


def as_they_are(options: BradleyTerryOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
                ) -> Sequence[Example]:
    """Pairs are trained on as pairs."""
    del options, funnel, renderer
    return examples


KIND = Kind(
    options=BradleyTerryScoring, open=open_scorer, shape=reward_config,
    passes=lambda options, responses: Passes(1, responses),
    outputs=lambda compute: compute.slot_scores,
    training=TrainedKind(options=BradleyTerryOptions, examples=as_they_are, model=as_reward_model,
                         shape=lambda options, config: reward_config(config), objective=objective, responses=2,
                         quoted=0, reads_head=True, served=lambda options, model: BradleyTerryScoring(model)))
