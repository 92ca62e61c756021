"""Training a reward or preference model of any kind that can be trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config.training import RewardOptions
from rlhf_jax.models import DecoderConfig
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.kinds import trainable_kind
from rlhf_jax.workflow.reward_model import reading_key
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.train import Training, check_margins, funnels, preview_training, read_all, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardStage(Stage):
    """Training what scores responses.

    Attributes:
      start: a language model, or a reward model of the same kind.
      data: groups with pairs, or whatever the kind made of them.
      options: of the kind.
      evaluation: held-out groups.
    """

    start: Checkpoint
    data: tuple[GroupSource, ...]
    options: RewardOptions
    evaluation: GroupSource | None = None

    def _shape(self) -> DecoderConfig:
        return self.start.reward_model if trainable_kind(self.options).reads_head else self.start.config

    @property
    def objective(self) -> Callable[[Compute], Objective]:
        return trainable_kind(self.options).objective(self.options)

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), **reading_key(self._shape())}

    def preview(self, context: Context) -> Preview:
        return preview_training(self, context)

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        kind = trainable_kind(self.options)
        groups, held_out = read_all(self.data), self.evaluation.read() if self.evaluation else []
        check_margins(self.options, groups, held_out)
        params, config = kind.model(self.options, context.params(self.start), self._shape())
        job = Training(start=self.start, params=params, config=config, objective=self.objective,
                       options=self.options, groups=groups, eval_groups=held_out)
        del params
        return {**train(folder, job, context), **funnels(self.data)}
