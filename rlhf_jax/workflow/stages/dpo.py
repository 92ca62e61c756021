"""Preference optimisation: the DPO family, against a reference or without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.data.groups import BY_OTHER, PromptGroup, Response
from rlhf_jax.data.mismatch import labelled_pairs, with_mismatched
from rlhf_jax.data.packing import default_row_length
from rlhf_jax.parallel.micro_batches import pass_rows
from rlhf_jax.plugins import plugin_keys
from rlhf_jax.training.objectives import Compute, Objective, Preference
from rlhf_jax.training.unpaired import Unpaired
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.reference import reference_logps
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.train import (
    Training,
    check_margins,
    compute_of,
    funnels,
    preview_training,
    read_all,
    train,
)

REFERENCE_CACHE = "reference_cache"


def preference_objective(options: PreferenceOptions) -> Callable[[Compute], Objective]:
    """What preference optimisation with these options minimises."""
    if options.loss.of_responses:
        return partial(Unpaired, loss=options.loss)
    return partial(Preference, loss=options.loss, ld_alpha=options.ld_alpha, use_weighting=options.use_weighting,
                   xpo_alpha=options.xpo_alpha, win_rate=options.win_rate)


def as_read(options: PreferenceOptions, groups: Sequence[PromptGroup], held_out: bool = False
            ) -> Sequence[PromptGroup]:
    """The groups as the loss reads them: pairs, or responses with labels, and for KTO answers to other prompts.

    Raises:
      ValueError: the loss reads a number of the responses that is not there, or is none it can read.
    """
    check_numbers(options, groups, held_out)
    if options.split_pairs:
        groups = labelled_pairs(groups)
    return with_mismatched(groups, options.train.seed) if groups and options.loss.needs_mismatched else groups


def check_numbers(options: PreferenceOptions, groups: Sequence[PromptGroup], held_out: bool = False) -> None:
    """Raises ValueError for a response without a probability of winning that sppo could read, and where xpo_alpha finds
    no answer of another policy to train on; held-out rows add nothing to its term without one."""
    rows = "the held-out rows" if held_out else "the rows"
    if options.loss.needs_wins:
        for group, response in _paired(groups):
            value = response.scores.get(options.win_rate)
            if value is None or not 0.0 <= value <= 1.0:
                found = "has no such number" if value is None else f"has {value:g}"
                raise ValueError(f"loss_type = {options.loss.loss_type!r} reads the number {options.win_rate!r} as a "
                                 f"response's probability of winning, and of {rows} a response to {group.prompt_id!r} "
                                 f"{found}. Score with a tournament (kind: pairwise, or a judge of pairs), name such a "
                                 "number with win_rate" + (", or leave out eval_dataset_name" if held_out else ""))
    if options.xpo_alpha and not held_out and any(True for _ in _paired(groups)) and not any(
            response.scores.get(BY_OTHER) == 1.0 for _, response in _paired(groups)):
        raise ValueError(f"xpo_alpha = {options.xpo_alpha:g} moves the policy away from the answers of another policy, "
                         f"and no response is marked as one ({BY_OTHER} = 1). Set loop.from_start, or make the pairs "
                         "of two policies (rlhf-jax pairs --input A --against B)")


def _paired(groups: Sequence[PromptGroup]) -> Iterator[tuple[PromptGroup, Response]]:
    """Each response that stands in a pair, with its group."""
    return ((group, group.responses[place]) for group in groups for pair in group.pairs for place in pair)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoStage(Stage):
    """Preference optimisation.

    Attributes:
      start: the policy to start from.
      reference: the policy it is held against, of any shape with the same vocabulary; None where the loss needs none.
      data: groups with pairs, or with labelled responses where the loss is of those.
      evaluation: held-out groups of the same kind.
    """

    start: Checkpoint
    reference: Checkpoint | None
    data: tuple[GroupSource, ...]
    options: PreferenceOptions
    evaluation: GroupSource | None = None

    @property
    def objective(self) -> Callable[[Compute], Objective]:
        return preference_objective(self.options)

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "functions": plugin_keys(*self.options.loss.loss_types)}

    def preview(self, context: Context) -> Preview:
        return preview_training(self, context, partial(as_read, self.options))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        groups = as_read(self.options, read_all(self.data))
        held_out = as_read(self.options, self.evaluation.read() if self.evaluation else [], held_out=True)
        check_margins(self.options, groups, held_out)  # before the reference's pass over all of them
        reference, eval_reference = self._reference_logps(context, groups, held_out)
        job = Training(start=self.start, params=context.params(self.start), config=self.start.config,
                       objective=self.objective, options=self.options, groups=groups,
                       reference=reference, eval_groups=held_out, eval_reference=eval_reference, keep=True)
        return {**train(folder, job, context), **funnels(self.data)}

    def _reference_logps(self, context: Context, *sets: Sequence[PromptGroup]
                         ) -> list[Sequence[Sequence[np.ndarray]] | None]:
        """Of each set of groups: once, cached in the run's folder; the reference's weights are released after it."""
        if self.reference is None:
            return [None for _ in sets]
        train_options = self.options.train
        compute = compute_of(self.reference.config, train_options, context.mesh)
        weights = context.params(self.reference)
        return [reference_logps(compute, weights, groups, context.mesh, dtype=jnp.dtype(train_options.dtype),
                                cache=context.run.store / REFERENCE_CACHE, rows=pass_rows(train_options),
                                row_length=_row_length(train_options.row_length, groups)) if groups else None
                for groups in sets]


def _row_length(row_length: int | None, groups: Sequence[PromptGroup]) -> int | None:
    """Of the reference's pass: that of training, or what the longest held-out group needs, as it is evaluated."""
    return None if row_length is None else max(row_length, default_row_length(groups))
