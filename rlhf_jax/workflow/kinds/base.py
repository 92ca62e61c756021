"""What a kind of scorer is: its options, how it is opened, how it is trained, what a plan compiles for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.scorer import ScoreAt, ScorerModel
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.data.rows import Kind as RowKind
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import FittingRows, RenderedRows
from rlhf_jax.workflow.stage import fingerprint

GivenWeights = Callable[[], Params] | None


class Passes(NamedTuple):
    """Rows that scoring the answers of one prompt takes, for a plan.

    questions: separate rows per prompt. answers: responses that share a row's prompt. quoted: answers that stand in
    the prompt itself, as those which a preference model compares. response_tokens: of one answer; None for the data's.
    """

    questions: float
    answers: int
    quoted: int = 0
    response_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainedKind:
    """How a kind is trained.

    Attributes:
      options: its class of training options.
      rows: layout of the rows that it learns from.
      examples: (options, examples, funnel, renderer) -> what is rendered and trained on.
      model: (options, weights, config) -> the weights and config that training starts from.
      shape: (options, config of a language model) -> config of what is trained.
      objective: options -> what is minimised.
      passes: what one example takes of a row.
      responses: of a group that is trained on.
      served: (options, folder and how rows were rendered) -> the options of the scorer that the trained model is.
      held_out: options -> those by which held-out examples are prepared.
      reads_head: it is a classifier, and rows end where its head is read.
      examples_per_pair: options -> how many examples one preference pair makes.
    """

    options: type
    examples: Callable[[Any, Sequence[Example], Funnel, Renderer], Sequence[Example]]
    model: Callable[[Any, Params, DecoderConfig], tuple[Params, DecoderConfig]]
    shape: Callable[[Any, DecoderConfig], DecoderConfig]
    objective: Callable[[Any], Callable[[Compute], Objective]]
    responses: int
    quoted: int
    served: Callable[[Any, ScorerModel], Any]
    reads_head: bool = False
    rows: RowKind = "preference"
    held_out: Callable[[Any], Any] = lambda options: options
    examples_per_pair: Callable[[Any], int] = lambda options: 1

    @property
    def reader(self) -> type[RenderedRows]:
        """How those rows become groups: of graded ones an answer that is too long is left out alone."""
        return FittingRows if self.rows == "graded" else RenderedRows


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
      options: its class of scorer options.
      open: (options, mesh, name, weights) -> the scorer, called `name` in the data. weights: gives what stands in the
        place of the model's own, None for those of its files, which are read when it first scores, and hashed when its
        key is first asked for.
      passes: (options, responses of a prompt) -> what scoring them takes; None where nothing is compiled.
      outputs: compute -> the function of (params, batch) that is compiled.
      training: how it is trained, None for what is not trained here.
    """

    options: type
    open: Callable[[Any, Mesh, str, GivenWeights], Scorer]
    passes: Callable[[Any, int], Passes] | None = None
    outputs: Callable[[Compute], Callable[[Params, Any], Any]] | None = None
    shape: Callable[[DecoderConfig], DecoderConfig] = lambda config: config
    training: TrainedKind | None = None


class OpenModel(NamedTuple):
    """The model of a scorer. weights: reads them onto the mesh. key: finds the key of the model and of its use."""

    weights: Callable[[], Params]
    config: DecoderConfig
    renderer: Renderer
    key: Callable[[], str]


def find_model_of(options: ScorerModel) -> Checkpoint:
    """The checkpoint of a scorer."""
    return Checkpoint.find(options.model_name_or_path, options.chat_template_path)


def read_at(config: DecoderConfig, score_at: ScoreAt | None) -> DecoderConfig:
    """The config of a classifier whose head is read where the options say, if they do."""
    return config if score_at is None else dataclasses.replace(config, score_at=score_at)


def open_model(options: Any, mesh: Mesh, weights: GivenWeights = None) -> OpenModel:
    """The model in `options.model`, or these weights in its shape; all other options are part of its key."""
    model: ScorerModel = options.model
    checkpoint = find_model_of(model)
    render = RenderOptions(max_length=model.max_length, overlong="drop", text_as_chat=model.text_as_chat,
                           system_prompt=model.system_prompt)
    settings = dataclasses.replace(options, model=dataclasses.replace(model, model_name_or_path="",
                                                                      chat_template_path=None))

    def key() -> str:  # what lies at those paths is in the checkpoint's; hashing it reads all weights, so not before
        return fingerprint({"options": settings, "model": checkpoint.key})

    return OpenModel(weights or partial(checkpoint.params, mesh, jnp.dtype(model.dtype)), checkpoint.config,
                     checkpoint.renderer(render), key)
