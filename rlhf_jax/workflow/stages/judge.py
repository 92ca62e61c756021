"""Judging a policy's samples: every scorer's verdict, and KL to the start."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.parallel import divided, gather_counts, is_main_process
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.stage import JUDGED, Stage
from rlhf_jax.workflow.stages.shards import ShardFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeStage(Stage):
    """Adds every scorer's verdict and the KL to `start` to the samples of `source`; dtype is of start's weights."""

    source: ShardFolder
    scorers: tuple[Scorer, ...]
    start: Checkpoint
    dtype: str

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "as": [scorer.name for scorer in self.scorers]}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        scorers = self.scorers
        groups, before = self.source.read(), [Counter(scorer.failures) for scorer in scorers]
        for place, scorer in enumerate(scorers):
            context.tick(context.name, place, len(scorers) + 1, scorer.name)
            scores = divided(groups, scorer.score)
            groups = [g.with_scores(scorer.name, s) for g, s in zip(groups, scores, strict=True)]
            scorer.let_go()
        params = self.start.params(context.mesh, jnp.dtype(self.dtype))
        found = context.logps_map(self.start.config)(params, groups)
        if is_main_process():
            write_groups(folder / JUDGED, add_kl(groups, found))
        context.tick(context.name, len(scorers) + 1, len(scorers) + 1, "")
        failures = {s.name: gather_counts(s.failures - earlier) for s, earlier in zip(scorers, before, strict=True)}
        return {"prompts": len(groups), "failures": failures}


def add_kl(groups: Sequence[PromptGroup], reference: Sequence[Sequence[np.ndarray]]) -> list[PromptGroup]:
    """Groups with two more scores a response: KL(policy || reference) estimated by k1 and by k3, summed over tokens.

    The policy's log-probs are those the sampler reported; `reference` holds the other model's for the same tokens.
    """
    out = []
    for group, theirs in zip(groups, reference, strict=True):
        for name, estimator in (("kl_k1", losses.kl_k1), ("kl_k3", losses.kl_k3)):
            values: list[float | None] = [
                None if r.logps is None else float(jnp.sum(estimator(jnp.asarray(r.logps), jnp.asarray(ref))))
                for r, ref in zip(group.responses, theirs, strict=True)]
            group = group.with_scores(name, values)
        out.append(group)
    return out
