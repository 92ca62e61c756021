"""`kind: odin`: a reward model with one head for the length and one for the quality (ODIN, arXiv 2402.07319)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax.sharding import Mesh

from rlhf_jax.config.scorer import OdinScoring
from rlhf_jax.config.training import OdinOptions
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Text
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.rows import Example
from rlhf_jax.models import CheckpointError, DecoderConfig, Params, as_classifier
from rlhf_jax.scoring import BradleyTerryScorer
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.training.odin import LENGTH, QUALITY_HEAD, Odin
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model, read_at
from rlhf_jax.workflow.reward_model import reward_config

LABELS = (LENGTH, "quality")


def odin_config(config: DecoderConfig) -> DecoderConfig:
    """The shape of a two-headed model on a language model's backbone; one that has two heads already keeps its own."""
    shape = reward_config(config)
    return shape if config.is_classifier else dataclasses.replace(shape, num_labels=2, labels=LABELS)


def open_scorer(options: OdinScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> BradleyTerryScorer:
    """The quality head as the scorer; the length head's number is stored beside it."""
    model = open_model(options, mesh, weights)
    if model.config.num_labels != len(LABELS):
        raise CheckpointError(f"an ODIN model has two outputs, length and quality, and this checkpoint has "
                              f"{model.config.num_labels}; for a plain reward model set kind: bradley_terry")
    config = dataclasses.replace(read_at(model.config, options.score_at), labels=LABELS)
    return BradleyTerryScorer(model.weights, config, model.renderer, mesh, name=name, key=model.key,
                              output=QUALITY_HEAD)


def two_heads(options: OdinOptions, params: Params, config: DecoderConfig) -> tuple[Params, DecoderConfig]:
    """A language model with two fresh heads, or the ODIN model it already is. config: the reward model's."""
    if "score" in params:
        if config.num_labels != len(LABELS):
            raise ValueError(f"an ODIN model has two outputs and this checkpoint has {config.num_labels}; start from a "
                             "language model or from an ODIN model")
        return params, config
    shape = dataclasses.replace(config, num_labels=len(LABELS), labels=LABELS)
    return as_classifier(params, jax.random.key(options.train.seed), shape), shape


def last_turn(response: Text) -> str:
    """The text that a response ends with: of several turns the last one alone."""
    return response if isinstance(response, str) else str(response[-1]["content"])


def with_lengths(options: OdinOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
                 ) -> Sequence[Example]:
    """Pairs whose responses carry the length of their last turn, as a number."""
    del funnel

    def length(text: str) -> float:
        return float(len(text) if options.length_unit == "characters" else
                     len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]))

    out = OnDisk[Example]()
    for example in examples:
        scores = example.scores or ({},) * len(example.responses)
        out.append(dataclasses.replace(example, scores=tuple(
            {**some, LENGTH: length(last_turn(response))}
            for some, response in zip(scores, example.responses, strict=True))))
    return out


def objective(options: OdinOptions) -> Callable[[Compute], Objective]:
    return partial(Odin, length_coefficient=options.length_coefficient,
                   orthogonal_coefficient=options.orthogonal_coefficient)


KIND = Kind(
    options=OdinScoring, open=open_scorer, shape=odin_config,
    passes=lambda options, responses: Passes(1, responses),
    outputs=lambda compute: compute.slot_scores,
    training=TrainedKind(options=OdinOptions, examples=with_lengths, model=two_heads,
                         shape=lambda options, config: odin_config(config), objective=objective, responses=2,
                         quoted=0, reads_head=True, served=lambda options, model: OdinScoring(model)))
