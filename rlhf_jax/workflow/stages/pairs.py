"""Choosing preference pairs, or the best of n, from scored responses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups, write_jsonl_atomic
from rlhf_jax.data.layouts import pair_rows
from rlhf_jax.parallel import is_main_process
from rlhf_jax.plugins import plugin_keys
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.directions import DIRECTION, with_reach
from rlhf_jax.workflow.enhancer import EarlierPairs, Enhancer, StoredStates
from rlhf_jax.workflow.pairs import best_of_n, make_pairs
from rlhf_jax.workflow.products import COVARIANCE, PAIRS, TRL
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import JoinedShards, ShardFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsStage(Stage):
    """Pairs of scored responses, and the funnel of prompts.

    Attributes:
      layout: "trl" writes TRL beside pairs.jsonl, one row per pair as TRL and RLHFlow read it.
      method: "dpo" makes pairs, "raft" keeps each prompt's best response.
      directed: prompts have directions, and responses are ranked by how far they reach in theirs.
      states: of the reward model, for the enhancer. earlier: its pairs of the round before.
    """

    source: ShardFolder | JoinedShards
    options: PairOptions
    method: Literal["dpo", "raft"] = "dpo"
    layout: Literal["groups", "trl"] = "groups"
    directed: bool = False
    states: StoredStates | None = None
    earlier: EarlierPairs | None = None

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "functions": plugin_keys(self.options.rule)}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        groups, funnel, enhancer = self._select()
        if is_main_process():
            write_groups(folder / PAIRS, groups)
            if enhancer is not None:
                np.save(folder / COVARIANCE, enhancer.learned(groups))
            if self.layout == "trl":
                write_jsonl_atomic(folder / TRL, (row for group in groups for row in pair_rows(group)))
        margins = sum(len(group.margins) for group in groups)
        gaps = math.fsum(margin / self.options.margin_scale for group in groups for margin in group.margins)
        return {"funnel": funnel.to_json(), **({"mean_gap": gaps / margins} if margins else {})}

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=self._select()[1])

    def _select(self) -> tuple[Sequence[PromptGroup], Funnel, Enhancer | None]:
        groups, options = self.source.groups(), self.options
        if self.directed:
            groups, options = with_reach(groups), dataclasses.replace(options, scorer=DIRECTION)
        if self.method == "raft":
            return *best_of_n(groups, options), None
        enhancer = None if self.states is None else Enhancer(options, self.states, self.earlier)
        return *make_pairs(groups, options, enhancer), enhancer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledPairsStage(Stage):
    """The pairs of a preference set, in the ids of `model`: human labels, no sampling."""

    data: GroupSource
    model: Checkpoint

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        groups = self.data.read()
        if is_main_process():
            write_groups(folder / PAIRS, groups)
        return {"pairs": len(groups)}
