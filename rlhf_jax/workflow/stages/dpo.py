"""Preference optimisation: the DPO family, against a reference or without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.mismatch import labelled_pairs, with_mismatched
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
    return partial(Preference, loss=options.loss, ld_alpha=options.ld_alpha, use_weighting=options.use_weighting)


def as_read(options: PreferenceOptions, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """The groups as the loss reads them: pairs, or responses with labels, and for KTO answers to other prompts."""
    if options.split_pairs:
        groups = labelled_pairs(groups)
    return with_mismatched(groups, options.train.seed) if groups and options.loss.needs_mismatched else list(groups)


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
        held_out = as_read(self.options, self.evaluation.read() if self.evaluation else [])
        check_margins(self.options, groups, held_out)  # before the reference's pass over all of them
        reference, eval_reference = self._reference_logps(context, groups, held_out)
        job = Training(start=self.start, params=context.params(self.start), config=self.start.config,
                       objective=self.objective, options=self.options, groups=groups,
                       reference=reference, eval_groups=held_out, eval_reference=eval_reference, keep=True)
        return {**train(folder, job, context), **funnels(self.data)}

    def _reference_logps(self, context: Context, *sets: Sequence[PromptGroup]) -> list[list[list[np.ndarray]] | None]:
        """Of each set of groups: once, cached in the run's folder; the reference's weights are released after it."""
        if self.reference is None:
            return [None for _ in sets]
        train_options = self.options.train
        compute = compute_of(self.reference.config, train_options, context.mesh)
        weights = context.params(self.reference)
        return [reference_logps(compute, weights, list(groups), context.mesh, dtype=jnp.dtype(train_options.dtype),
                                cache=context.run.store / REFERENCE_CACHE, rows=train_options.micro_rows,
                                row_length=train_options.row_length) if groups else None for groups in sets]
