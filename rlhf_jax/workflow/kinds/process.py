"""`kind: process` and `kind: outcome_generative`: a language model that answers each step, or a solution, with a sign.

RLHFlow's mathematics models; the scalar outcome model is `kinds/outcome.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from jax.sharding import Mesh

from rlhf_jax.config.scorer import OutcomeGenerativeScoring, ProcessScoring
from rlhf_jax.config.training import OutcomeGenerativeOptions, ProcessOptions
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.scoring.process import (
    ProcessScorer,
    cut_at,
    sign_ids,
    sign_outputs,
    signed_examples,
    whole_solution,
)
from rlhf_jax.training.objectives import Compute, Objective, Sft
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, open_model


def open_process(options: ProcessScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> ProcessScorer:
    """The process model as a scorer."""
    model = open_model(options, mesh, weights)
    return ProcessScorer(model.weights, model.config, model.renderer, mesh, name=name, key=model.key,
                         cut=cut_at(options.step_separator), reduce=options.reduce)


def open_outcome(options: OutcomeGenerativeScoring, mesh: Mesh, name: str, weights: GivenWeights = None
                 ) -> ProcessScorer:
    """The outcome model as a scorer: a process model of one step."""
    model = open_model(options, mesh, weights)
    return ProcessScorer(model.weights, model.config, model.renderer, mesh, name=name, key=model.key,
                         cut=whole_solution, names=False)


def language_model(options: ProcessOptions | OutcomeGenerativeOptions, params: Params, config: DecoderConfig
                   ) -> tuple[Params, DecoderConfig]:
    """The language model it starts from, which keeps its head."""
    del options
    if config.is_classifier:
        raise ValueError("a process or generative outcome model answers with + or -, and this checkpoint is a "
                         f"classifier ({config.num_labels} output(s)) without a next-token head; start from a language "
                         "model")
    return params, config


def steps(options: ProcessOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
          ) -> Sequence[Example]:
    """Solutions with a sign after each step."""
    sign_ids(renderer)  # that a sign is no token of its own is said now, not when the trained model is asked
    return signed_examples(examples, funnel, options.label_threshold)


def solutions(options: OutcomeGenerativeOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
              ) -> Sequence[Example]:
    """Solutions with a sign at their end."""
    del options
    sign_ids(renderer)
    return signed_examples(examples, funnel, None)


def objective(options: ProcessOptions | OutcomeGenerativeOptions) -> Callable[[Compute], Objective]:
    """Fine-tuning on the signs."""
    del options
    return Sft


def passes(options: ProcessScoring | OutcomeGenerativeScoring, responses: int) -> Passes:
    """Each answer is a row of its own, quoted in its turns."""
    del options
    return Passes(responses, 1, quoted=1, response_tokens=2)


_TRAINED = TrainedKind(options=ProcessOptions, examples=steps, model=language_model,
                       shape=lambda options, config: config, objective=objective, responses=1, quoted=1,
                       rows="steps", served=lambda options, model: ProcessScoring(model))

PROCESS = Kind(
    options=ProcessScoring, open=open_process, passes=passes,
    outputs=lambda compute: partial(sign_outputs, compute, (0, 1)),
    training=_TRAINED)

OUTCOME_GENERATIVE = dataclasses.replace(
    PROCESS, options=OutcomeGenerativeScoring, open=open_outcome,
    training=dataclasses.replace(_TRAINED, options=OutcomeGenerativeOptions, examples=solutions,
                                 rows="unpaired", served=lambda options, model: OutcomeGenerativeScoring(model)))
