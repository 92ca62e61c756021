"""Supervised fine-tuning; also RAFT's update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config.training import SftOptions
from rlhf_jax.training.objectives import Compute, Objective, Sft
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.train import Training, funnels, preview_training, read_all, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftStage(Stage):
    """Fine-tuning on responses.

    Attributes:
      start: the language model to start from.
      data: groups with responses.
      evaluation: held-out groups.
    """

    start: Checkpoint
    data: tuple[GroupSource, ...]
    options: SftOptions
    evaluation: GroupSource | None = None

    @property
    def objective(self) -> Callable[[Compute], Objective]:
        return Sft

    def preview(self, context: Context) -> Preview:
        return preview_training(self, context)

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        groups, held_out = read_all(self.data), self.evaluation.read() if self.evaluation else []
        job = Training(start=self.start, params=context.params(self.start), config=self.start.config,
                       objective=self.objective, options=self.options, groups=groups, eval_groups=held_out, keep=True)
        return {**train(folder, job, context), **funnels(self.data)}
