"""The online iteration: (sample, score, pair, train) x rounds from one policy, with every open choice an option."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.pairs import ENHANCER, PairOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import SftOptions
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GivenGroups, GroupFile
from rlhf_jax.workflow.enhancer import EarlierPairs, StoredStates
from rlhf_jax.workflow.products import FEATURES, PAIRS
from rlhf_jax.workflow.stage import Finished, Stage
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.mix import MixStage
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.score import ScoreStage
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.stages.shards import JoinedShards, ShardFolder, Shards


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All options of a loop: how to sample, pair, train (`dpo`, or `raft` for RAFT) and iterate."""

    loop: LoopOptions
    sampling: SamplingConfig
    pairs: PairOptions
    dpo: PreferenceOptions
    raft: SftOptions

    @property
    def enhanced(self) -> bool:
        """The pairs are the enhancer's, which reads the reward model's features."""
        return self.loop.method == "dpo" and self.pairs.rule == ENHANCER


class Choice(Protocol):
    """Says of each round's policy whether the next one goes on from it."""

    @property
    def ends(self) -> bool:
        """No further round is done."""
        ...

    def judge(self, label: str, policy: Checkpoint) -> Checkpoint:
        """The policy to go on from: this one, or an earlier one."""
        ...


def round_prompts(prompts: Sequence[PromptGroup], loop: LoopOptions, number: int) -> Sequence[PromptGroup]:
    """Prompts of round `number` (from 1): disjoint, contiguous shares.

    Raises:
      ValueError: if there are fewer prompts than the rounds ask for.
    """
    if loop.prompts_per_round is None:
        edges = np.linspace(0, len(prompts), loop.rounds + 1).astype(int)
        start, stop = int(edges[number - 1]), int(edges[number])
    else:
        start, stop = (number - 1) * loop.prompts_per_round, number * loop.prompts_per_round
    if stop > len(prompts) or stop <= start:
        raise ValueError(f"round {number} asks for prompts {start} to {stop} and there are {len(prompts)}; give more "
                         "prompts, or lower rounds or prompts_per_round (prompts.drop_duplicate_prompts: false lets "
                         "rounds share those that the file repeats)")
    return prompts[start:stop]


def shards_of(finished: Finished) -> ShardFolder:
    """What a sampling or scoring stage wrote, as the input of another."""
    return ShardFolder(finished.folder, finished.key)


def pairs_of(finished: Finished) -> GroupFile:
    """What a pairing stage wrote, as the input of a training."""
    return GroupFile(finished.folder / PAIRS, finished.key)


def iterate(context: Context, label: str, start: Checkpoint, prompts: Sequence[PromptGroup], scorer: Scorer,
            recipe: Recipe, choice: Choice | None = None) -> list[Checkpoint]:
    """Runs the loop and returns the policies of rounds 1 to T, or of those done until `choice` ended it.

    Args:
      label: stages are called `label/round-1/sample` and so on.
      prompts: all prompts, rendered for the policy.
      choice: which policies to go on from; None for each round's own.
    """
    loop, policies = recipe.loop, list[Checkpoint]()
    reference = latest = start
    data: list[GroupFile] = []
    earlier: EarlierPairs | None = None
    rounds = [round_prompts(prompts, loop, number) for number in range(1, loop.rounds + 1)]  # all there, or no round
    for number, share in enumerate(rounds, start=1):
        stem = f"{label}/round-{number}"
        sampling = dataclasses.replace(recipe.sampling, seed=recipe.sampling.seed + 1000 * number)
        answers = _sample(context, stem, (latest, start), share, dataclasses.replace(recipe, sampling=sampling))
        scored = context.do(f"{stem}/score", ScoreStage(scorer=scorer, source=answers, features=recipe.enhanced))
        states = StoredStates(scored.folder / FEATURES, scored.key) if recipe.enhanced else None
        paired = context.do(f"{stem}/pairs", PairsStage(
            source=shards_of(scored), options=recipe.pairs, method=loop.method, directed=loop.directions is not None,
            states=states, earlier=earlier))
        earlier = EarlierPairs(paired.folder, paired.key) if recipe.enhanced else None
        data.append(pairs_of(paired))
        origin = latest if loop.init_from == "previous" else start
        anchor = latest if loop.reference == "previous" else reference
        policy = context.train(f"{stem}/{loop.method}", _update(recipe, origin, anchor, _kept(data, loop)))
        policies.append(policy)
        latest = policy if choice is None else choice.judge(f"{label}-{number}", policy)
        if choice is not None and choice.ends:
            break
        if loop.reference == "ema" and number < loop.rounds and latest is policy:
            reference = context.train(f"{stem}/reference", MixStage(reference=reference, policy=policy,
                                                                    alpha=loop.ref_model_mixup_alpha))
    return policies


def _sample(context: Context, stem: str, policies: tuple[Checkpoint, Checkpoint], prompts: Sequence[PromptGroup],
            recipe: Recipe) -> Shards:
    """A round's answers: those of the first policy, joined by those of the other, the start, if the loop asks for any.
    """
    out = []
    for name, policy, sampling in zip(("sample", "sample_start"), policies, recipe.loop.divided(recipe.sampling),
                                      strict=True):
        if sampling is not None:
            out.append(shards_of(context.do(f"{stem}/{name}", SampleStage(
                policy=policy, prompts=GivenGroups(prompts), sampling=sampling, dtype=recipe.dpo.train.dtype,
                shard_size=recipe.loop.shard_size))))
            context.sampled.policy = policy
    return JoinedShards(*out) if len(out) > 1 else out[0]


def _kept(data: Sequence[GroupFile], loop: LoopOptions) -> tuple[GroupFile, ...]:
    """The rounds' data that the latest round trains on."""
    rounds = {"fresh": 1, "accumulate": len(data), "window": loop.window}[loop.data_policy]
    return tuple(data[-rounds:])


def _update(recipe: Recipe, origin: Checkpoint, anchor: Checkpoint, data: tuple[GroupFile, ...]) -> Stage:
    """The training of a round: preference optimisation, or RAFT's fine-tuning on the best responses."""
    if recipe.loop.method == "raft":
        return SftStage(start=origin, data=data, options=recipe.raft)
    return DpoStage(start=origin, reference=anchor if recipe.dpo.loss.needs_reference else None, data=data,
                    options=recipe.dpo)
