"""Kinds of scorers and reward models: one file and one row of `KINDS` each."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from rlhf_jax.config.scorer import ScorerOptions
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.kinds import bradley_terry, function, multi_objective, odin, pairwise, tree
from rlhf_jax.workflow.kinds.base import Kind, Passes, TrainedKind

__all__ = ["KINDS", "Kind", "Passes", "TrainedKind", "kind_of", "open_scorer", "trainable_kind"]

KINDS: dict[str, Kind] = {
    "bradley_terry": bradley_terry.KIND,
    "pairwise": pairwise.KIND,
    "multi_objective": multi_objective.KIND,
    "function": function.KIND,
    "odin": odin.KIND,
    "tree": tree.KIND,
}
"""`kind` -> what it is."""


def kind_of(options: Any) -> Kind:
    """The row of some options; ValueError for a kind that is not in the table."""
    if options.kind not in KINDS:
        raise ValueError(f"kind = {options.kind!r}; choose one of {', '.join(KINDS)}")
    return KINDS[options.kind]


def trainable_kind(options: Any) -> TrainedKind:
    """How the kind of some training options is trained; ValueError where it is not trained here."""
    training = kind_of(options).training
    if training is None:
        able = ", ".join(name for name, kind in KINDS.items() if kind.training is not None)
        raise ValueError(f"kind = {options.kind!r} is not trained here; choose one of {able}")
    return training


def open_scorer(options: ScorerOptions, mesh: Mesh, name: str) -> Scorer:
    """The scorer that `options` describe, called `name` in the data.

    Raises:
      CheckpointError: if the checkpoint is of another kind than asked for.
      ValueError: if the function cannot be imported.
    """
    return kind_of(options).open(options, mesh, name)
