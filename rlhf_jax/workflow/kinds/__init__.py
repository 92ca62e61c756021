"""Kinds of scorers and reward models: one file and one row of `KINDS` each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rlhf_jax.config.scorer import ScorerOptions
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.kinds import (
    bradley_terry,
    combine,
    ensemble,
    function,
    implicit,
    judge,
    multi_objective,
    odin,
    outcome,
    pairwise,
    process,
    regression,
    reward_server,
    tree,
)
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind
from rlhf_jax.workflow.remote import with_answers_in

__all__ = ["KINDS", "Kind", "Passes", "TrainedKind", "kind_of", "open_scorer", "trainable_kind"]

KINDS: dict[str, Kind] = {
    "bradley_terry": bradley_terry.KIND,
    "pairwise": pairwise.KIND,
    "multi_objective": multi_objective.KIND,
    "function": function.KIND,
    "implicit": implicit.KIND,
    "judge": judge.SERVED,
    "local_judge": judge.LOCAL,
    "reward_server": reward_server.KIND,
    "odin": odin.KIND,
    "regression": regression.KIND,
    "ensemble": ensemble.KIND,
    "tree": tree.KIND,
    "process": process.PROCESS,
    "outcome_generative": process.OUTCOME_GENERATIVE,
    "outcome": outcome.KIND,
    "combine": combine.KIND,
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


def open_scorer(options: ScorerOptions, mesh: Mesh, name: str, folder: Path | None = None, *,
                weights: GivenWeights = None) -> Scorer:
    """The scorer that `options` describe, called `name` in the data, with `weights` in place of its model's own.

    folder: of the run, where answers are kept that a server is paid for.

    Raises:
      CheckpointError: if the checkpoint is of another kind than asked for.
      ValueError: if the function cannot be imported, or a server's token or a judge's rubric is not there.
    """
    return kind_of(options).open(with_answers_in(folder, options), mesh, name, weights)
