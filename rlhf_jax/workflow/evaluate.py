"""Evaluating policies in a run: fresh samples on held-out prompts, every scorer's verdict, KL to the start."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.data.rows import Example
from rlhf_jax.evaluation.preference import PreferenceReport, pair_margins, preference_accuracy
from rlhf_jax.models import Params
from rlhf_jax.parallel import divided, gather_counts, is_main_process
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.scoring import PairwiseScorer, Scorer
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.iterate import Policy, sample
from rlhf_jax.workflow.sample import read_made, read_shards
from rlhf_jax.workflow.stage import Stage

JUDGED = "judged.jsonl"
EVALUATION_SHARD = 128
"""Prompts in one shard of evaluation samples: what one process makes at a time."""


@dataclasses.dataclass
class Outcome:
    """What a run leaves for the report.

    Attributes:
      policies: (policy, family, round) in order of presentation; the first is the baseline.
      judged: label -> judged samples.
      funnels: data set -> how many of its rows were used.
      reward_model: its evaluation on held-out pairs, if it was trained here.
    """

    policies: list[tuple[Policy, str, int]]
    judged: dict[str, list[PromptGroup]]
    funnels: dict[str, Funnel]
    reward_model: Mapping[str, Any] | None


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


def judge(context: Context, name: str, sampled: Stage, scorers: Sequence[Scorer], start: Policy, dtype: str) -> Stage:
    """Adds every scorer's verdict and the KL to `start` to the samples of a stage."""
    inputs = {"source": sampled.key, "scorers": [[s.name, s.fingerprint] for s in scorers], "start": start.key,
              "dtype": dtype}

    def body(folder: Path) -> Mapping[str, Any]:
        groups, before = read_shards(sampled.folder), [Counter(scorer.failures) for scorer in scorers]
        for place, scorer in enumerate(scorers):
            context.tick(name, place, len(scorers) + 1, scorer.name)
            groups = [g.with_scores(scorer.name, s)
                      for g, s in zip(groups, divided(groups, scorer.score), strict=True)]
            scorer.let_go()
        params: Params = start.checkpoint.params(context.mesh, jnp.dtype(dtype))
        found = context.logps_map(start.checkpoint.config)(params, groups)
        if is_main_process():
            write_groups(folder / JUDGED, add_kl(groups, found))
        context.tick(name, len(scorers) + 1, len(scorers) + 1, "")
        failures = {s.name: gather_counts(s.failures - earlier) for s, earlier in zip(scorers, before, strict=True)}
        return {"prompts": len(groups), "failures": failures}

    return context.run.stage(name, inputs, body)


def evaluate_policy(context: Context, policy: Policy, start: Policy, prompts: Sequence[PromptGroup],
                    sampling: SamplingConfig, scorers: Sequence[Scorer], dtype: str) -> list[PromptGroup]:
    """Judged samples of a policy on the evaluation prompts."""
    sampled = sample(context, f"evaluate/{policy.label}/sample", policy, prompts, sampling, dtype,
                     EVALUATION_SHARD)
    judged = judge(context, f"evaluate/{policy.label}/judge", sampled, scorers, start, dtype)
    return read_made(judged.folder / JUDGED)


def evaluate_scorer(scorer: Scorer, examples: Sequence[Example], seed: int) -> PreferenceReport:
    """Accuracy, likelihood and calibration of a scorer on held-out preference pairs, intervals by prompt."""
    nothing = np.zeros(0, np.int32)
    groups = [PromptGroup(e.prompt_id, nothing, tuple(Response(nothing, nothing, text) for text in e.responses),
                          e.prompt, e.pairs) for e in examples]
    if isinstance(scorer, PairwiseScorer):
        pairs = [(g, chosen, rejected) for g in groups for chosen, rejected in g.pairs]
        found = divided([(g.prompt, g.responses[c].text, g.responses[r].text) for g, c, r in pairs], scorer.compare)
        scorer.let_go()
        kept = [(p, g.prompt_id) for p, (g, _, _) in zip(found, pairs, strict=True) if p is not None]
        return preference_accuracy(probabilities=[p for p, _ in kept], clusters=[name for _, name in kept], seed=seed)
    scored = [g.with_scores(scorer.name, s) for g, s in zip(groups, divided(groups, scorer.score), strict=True)]
    scorer.let_go()
    margins, clusters = pair_margins(scored, scorer.name)
    return preference_accuracy(margins, clusters=clusters, seed=seed)
