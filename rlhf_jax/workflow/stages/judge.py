"""Judging a policy's samples: every scorer's verdict, and KL to the start."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rlhf_jax import losses
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.data.packing import power_of_two
from rlhf_jax.parallel import gather_counts, is_main_process, map_over_processes
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import JUDGED
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import ShardFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeStage(Stage):
    """Adds every scorer's verdict to the samples of `source`, and the KL to `start` to those that `own` marks.

    dtype: of start's weights.
    """

    source: ShardFolder
    scorers: tuple[Scorer, ...]
    start: Checkpoint
    dtype: str
    own: tuple[bool, ...]

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "as": [scorer.name for scorer in self.scorers]}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        scorers = self.scorers
        groups, before = self.source.read(), [Counter(scorer.failures) for scorer in scorers]
        for place, scorer in enumerate(scorers):
            context.tick(context.name, place, len(scorers) + 1, scorer.name)
            scores = map_over_processes(groups, scorer.score)
            groups = [g.with_scores(scorer.name, s) for g, s in zip(groups, scores, strict=True)]
            scorer.release()
        if any(self.own):
            params = self.start.params(context.mesh, jnp.dtype(self.dtype))
            logps = logps_map(Compute(self.start.config, mesh=context.mesh), context.mesh)
            groups = add_kl(groups, logps(params, groups), self.own)
        if is_main_process():
            write_groups(folder / JUDGED, groups)
        context.tick(context.name, len(scorers) + 1, len(scorers) + 1, "")
        failures = {s.name: gather_counts(s.failures - earlier) for s, earlier in zip(scorers, before, strict=True)}
        return {"prompts": len(groups), "failures": failures, "scores": mean_scores(groups)}


def mean_scores(groups: Sequence[PromptGroup]) -> dict[str, float]:
    """Name -> mean over prompts of the mean over a prompt's responses, of those that have the number."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for name in {name for response in group.responses for name in response.scores}:
            found.setdefault(name, []).append(float(np.mean([r.scores[name] for r in group.responses
                                                             if name in r.scores])))
    return {name: float(np.mean(found[name])) for name in sorted(found)}


def add_kl(groups: Sequence[PromptGroup], reference: Sequence[Sequence[np.ndarray]], own: Sequence[bool]
           ) -> list[PromptGroup]:
    """Groups with two more scores per response: KL(policy || reference) estimated by k1 and by k3, summed over tokens.

    The policy's log-probs are those the sampler reported; `reference` holds the other model's for the same tokens.
    Only the samples that `own` marks get scores (see `SamplingConfig.unchanged`): the others come from another
    distribution than their log-probs, and estimate no divergence.
    """
    out = []
    for group, theirs in zip(groups, reference, strict=True):
        estimated = [(r.logps, ref) if mine and r.logps is not None else None
                     for r, ref, mine in zip(group.responses, theirs, own, strict=True)]
        lengths = [len(pair[1]) for pair in estimated if pair]
        width = power_of_two(max(lengths, default=1))  # few widths, so that few programs are compiled
        padded = np.zeros((2, len(estimated), width), np.float32)  # where both are 0, so are the estimates
        for row, pair in enumerate(estimated):
            if pair:
                padded[:, row, : len(pair[1])] = pair
        for name, sums in zip(("kl_k1", "kl_k3"), np.asarray(_summed(*padded)), strict=True):
            group = group.with_scores(name, [{"": float(value)} if pair else None
                                             for value, pair in zip(sums, estimated, strict=True)])
        out.append(group)
    return out


@jax.jit
def _summed(logps: Array, reference: Array) -> tuple[Array, Array]:
    """[n, T] log-probs of n responses -> [n] sums of k1, and of k3."""
    return jnp.sum(losses.kl_k1(logps, reference), axis=1), jnp.sum(losses.kl_k3(logps, reference), axis=1)
