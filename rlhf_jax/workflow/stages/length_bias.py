"""Probing scored samples: how much their scores grow with length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.evaluation.length_bias import LengthUnit, length_bias, prompt_biases
from rlhf_jax.parallel import is_main_process
from rlhf_jax.workflow.benchmarking import METRICS
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import ROWS
from rlhf_jax.workflow.stage import Stage, write_json_atomic
from rlhf_jax.workflow.stages.shards import ShardFolder, counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBiasStage(Stage):
    """Correlation of score and length within each prompt. score: its name in the shards. seed: of the bootstrap."""

    source: ShardFolder
    score: str
    unit: LengthUnit
    seed: int = 0

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=counted(self.source))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        groups = self.source.read()
        found = length_bias(groups, self.score, self.unit, self.seed).to_json()
        if is_main_process():
            write_jsonl_atomic(folder / ROWS, [bias.to_json() for bias in
                                               prompt_biases(groups, self.score, self.unit)])
            write_json_atomic(folder / METRICS, found)
        return {"length_bias": found}
