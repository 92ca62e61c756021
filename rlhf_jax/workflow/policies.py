"""Evaluating policies: fresh samples on held-out prompts, every scorer's verdict, KL to the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np

from rlhf_jax.config.commands import CompareCommand
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.preference import ScorerReport
from rlhf_jax.evaluation.selection import Candidate
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GivenGroups, GroupFile, Preview, RenderedRows
from rlhf_jax.workflow.iterate import shards_of
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.products import JUDGED
from rlhf_jax.workflow.stages.judge import JudgeStage
from rlhf_jax.workflow.stages.sample import SampleStage, check_room

EVALUATION_SHARD = 128
"""Prompts in one shard of evaluation samples: what one process makes at a time."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A policy in a comparison. family: of the method that made it. round: of that method, from 1; 0 for the start."""

    label: str
    family: str
    round: int
    policy: Checkpoint


@dataclasses.dataclass
class Outcome:
    """What a run leaves for the report.

    Attributes:
      entries: in order of presentation; the first is the baseline.
      judged: label -> judged samples.
      funnels: data set -> how many of its rows were used.
      reward_model: its evaluation on held-out pairs, if it was trained here.
      candidates: what the choice of the policy was made among; empty where there was none.
    """

    entries: list[Entry]
    judged: dict[str, list[PromptGroup]]
    funnels: dict[str, Funnel]
    reward_model: ScorerReport | None
    candidates: tuple[Candidate, ...] = ()


def judge_all(context: Context, entries: Sequence[Entry], prompts: Sequence[PromptGroup], sampling: SamplingConfig,
              scorers: Sequence[Scorer], dtype: str) -> dict[str, list[PromptGroup]]:
    """Judged samples of every policy on the evaluation prompts; KL is measured from the first of them."""
    return {entry.label: list(judge_policy(context, f"evaluate/{entry.label}", entry.policy, prompts, sampling, scorers,
                                           entries[0].policy, dtype).read()) for entry in entries}


def judge_policy(context: Context, stem: str, policy: Checkpoint, prompts: Sequence[PromptGroup],
                 sampling: SamplingConfig, scorers: Sequence[Scorer], start: Checkpoint, dtype: str) -> GroupFile:
    """A policy's samples on these prompts, judged; KL is measured from `start`. stem: of the names of the stages."""
    sampled = context.do(f"{stem}/sample", SampleStage(
        policy=policy, prompts=GivenGroups(prompts), sampling=sampling, dtype=dtype, shard_size=EVALUATION_SHARD))
    context.sampled.policy = policy
    found = context.do(f"{stem}/judge", JudgeStage(
        source=shards_of(sampled), scorers=tuple(scorers), start=start, dtype=dtype, own=sampling.unchanged))
    return GroupFile(found.folder / JUDGED, found.key)


def policies_asked(command: CompareCommand, context: Context) -> tuple[Checkpoint, Checkpoint, RenderedRows]:
    """The baseline, the policy, and the prompts that both answer."""
    render = command.data.render
    baseline, policy = (Checkpoint.find(name, render.chat_template_path).as_policy()
                        for name in (command.baseline_model, command.model_name_or_path))
    check_vocabularies(baseline, policy, "The policy is given the baseline's tokens, and the baseline is asked for "
                       "the probability of the policy's; give models of one tokenizer")
    rows = partial(RenderedRows, kind="prompt", rows=command.data.rows, render=render,
                   quarantine=context.quarantine("prompts"))
    prompts, own = rows(checkpoint=baseline, benchmarks=command.data.benchmarks,
                        announce=context.run.announce), rows(checkpoint=policy)
    _check_same_prompts(baseline, policy, prompts.read(), own.read())
    for one in (baseline, policy):
        check_room(context, one, prompts.read(), command.sampling, command.dtype)
    return baseline, policy, prompts


def judges(command: CompareCommand, context: Context) -> list[Scorer]:
    """The proxy, and the gold judge if there is one; no weights are loaded yet."""
    return [open_scorer(options, context.local_mesh, name, context.run.folder)
            for name, options in (("proxy", command.scorer), ("gold", command.gold)) if options is not None]


def compare(command: CompareCommand, context: Context) -> Outcome:
    """`rlhf-jax compare`: fresh samples of a policy and of its baseline, judged, ready for the report."""
    scorers, (baseline, policy, prompts) = judges(command, context), policies_asked(command, context)
    entries = [Entry("baseline", "baseline", 0, baseline), Entry("policy", "policy", 1, policy)]
    judged = judge_all(context, entries, prompts.read(), command.sampling, scorers, command.dtype)
    return Outcome(entries, judged, {"prompts": prompts.funnel}, None)


def preview_comparison(command: CompareCommand, context: Context) -> Preview:
    """What a dry run of `compare` shows."""
    judges(command, context)
    baseline, _, prompts = policies_asked(command, context)
    return Preview(baseline, prompts, prompts.read())


def _check_same_prompts(baseline: Checkpoint, policy: Checkpoint, prompts: Sequence[PromptGroup],
                        own: Sequence[PromptGroup]) -> None:
    """Raises ValueError if the policy would write a prompt of the baseline's in other tokens (`own`)."""
    written = {group.prompt_id: group.prompt_ids for group in own}
    odd = [g.prompt_id for g in prompts if not np.array_equal(g.prompt_ids, written.get(g.prompt_id, g.prompt_ids))]
    if odd:
        raise ValueError(f"{policy.folder} writes {len(odd):,} of {len(prompts):,} prompts in other tokens than "
                         f"{baseline.folder}, the first {odd[0]!r}, and is to answer what the baseline answers: their "
                         "chat templates differ. Set chat_template_path to the one that both shall be given")
