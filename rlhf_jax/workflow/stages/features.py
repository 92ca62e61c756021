"""Hidden states of answers and prompts, stored in shards for probes that never run the backbone again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config.probe import Pool
from rlhf_jax.data.features import write_features
from rlhf_jax.data.groups import check_ids
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.tokenizer import end_of_turn
from rlhf_jax.parallel import Notice, on_main
from rlhf_jax.scoring.states import states_map
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import FittingRows, GroupSource, Preview
from rlhf_jax.workflow.features import Features
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import shard_name, shards_here
from rlhf_jax.workflow.stages.train import funnels

LEFT_OUT = "left_out.jsonl"
"""Answers that could not be rendered or were too long, by prompt id."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesStage(Stage):
    """Features into shards of `shard_size` prompts; finished shards are kept as they are.

    Attributes:
      model: the backbone; a reward model's, or a language model's.
      data: groups, rendered to where a reward model's head is read.
      pool: the state of an answer's last token, or the mean over its tokens.
      dtype: of weights, computation and what is stored.
    """

    model: Checkpoint
    data: GroupSource
    pool: Pool
    dtype: str
    shard_size: int

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(self.model, self.data, self.data.read())

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        groups, size, dtype = self.data.read(), self.shard_size, jnp.dtype(self.dtype)
        check_ids(groups, self.model.config.vocab_size)
        mesh, stop = context.local_mesh, self._stop_id()
        states = states_map(Compute(self.model.config, mesh=mesh), mesh, stop, self.pool)
        params, done = self.model.params(mesh, dtype), 0
        if isinstance(self.data, FittingRows):
            left_out = self.data.left_out
            on_main(lambda: write_jsonl_atomic(folder / LEFT_OUT, left_out))
        with count_compiles() as compiles:
            for number in shards_here(-(-len(groups) // size), Notice(folder)):
                path, some = folder / shard_name(number), list(groups[number * size : (number + 1) * size])
                if not path.is_file():
                    write_features(path, some, states(params, some), dtype)
                done += len(some)
                context.progress(min(done * jax.process_count(), len(groups)), len(groups))
        return {**count_features(folder), **funnels([self.data]), "compiled_programs": compiles.programs}

    def _stop_id(self) -> int | None:
        """The token that ends a turn; None for a model without a chat template, whose prompts end no turn."""
        tokenizer = self.model.tokenizer
        return end_of_turn(tokenizer).stop_id if tokenizer.chat_template else None


def count_features(folder: Path) -> dict[str, Any]:
    """What lies in a folder of feature shards, one looked at at a time."""
    found = Features((folder,))
    counts = {"prompts": 0, "responses": 0, "pairs": 0, "without_gate_position": 0}
    for shard in found.shards():
        counts["prompts"] += len(shard.rows)
        counts["responses"] += len(shard.response)
        counts["pairs"] += sum(len(row.pairs) for row in shard.rows)
        counts["without_gate_position"] += sum(not row.gate for row in shard.rows)
    return {**counts, "width": found.width}
