"""Opening a scorer from its options, with the fingerprint its scores are cached under."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.scoring import BradleyTerryScorer, FunctionScorer, MultiObjectiveScorer, PairwiseScorer, load_function
from rlhf_jax.workflow.options import DataOptions, ScorerOptions
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.stage import fingerprint, to_plain

AnyScorer = BradleyTerryScorer | PairwiseScorer | FunctionScorer


def check_scorer(options: ScorerOptions) -> None:
    """Raises what `open_scorer` would raise for a function, folder or model that is not there; loads no weights."""
    if options.function is not None:
        load_function(options.function)
    if options.model_name_or_path is not None:
        _ = Checkpoint.find(options.model_name_or_path).config


def open_scorer(options: ScorerOptions, mesh: Mesh, name: str) -> AnyScorer:
    """The scorer that `options` describe, called `name` in the data.

    Raises:
      CheckpointError: if the checkpoint is of another kind than asked for.
      ValueError: if the function cannot be imported.
    """
    if options.kind == "function":
        assert options.function is not None
        return FunctionScorer(load_function(options.function), name=name)
    assert options.model_name_or_path is not None
    checkpoint = Checkpoint.find(options.model_name_or_path, options.chat_template_path)
    data = DataOptions(max_length=options.max_length, overlong="drop", text_as_chat=options.text_as_chat)
    places = ("model_name_or_path", "chat_template_path")  # what lies there is in the checkpoint's key
    settings = {name: value for name, value in to_plain(options).items() if name not in places}
    key = fingerprint({"options": settings, "model": checkpoint.key})
    weights = partial(checkpoint.params, mesh, jnp.dtype(options.dtype))  # read for each stage that scores
    config = checkpoint.config
    if options.score_at is not None:
        config = dataclasses.replace(config, score_at=options.score_at)
    model = weights, config, checkpoint.renderer(data), mesh
    if options.kind == "pairwise":
        return PairwiseScorer(*model, name=name, fingerprint=key, method=options.method)
    if options.kind == "multi_objective":
        return MultiObjectiveScorer(*model, name=name, fingerprint=key)
    return BradleyTerryScorer(*model, name=name, fingerprint=key, output=options.output)
