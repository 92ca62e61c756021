"""The online iteration: (sample, score, pair, train) x rounds from one policy, with every open choice an option."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.models import Params, save_hf
from rlhf_jax.parallel import is_main_process
from rlhf_jax.sampling import SamplingConfig, rounded_up
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.options import PairOptions, PreferenceOptions, SftOptions
from rlhf_jax.workflow.pairs import best_of_n, make_pairs
from rlhf_jax.workflow.policy import Checkpoint, groups_key
from rlhf_jax.workflow.sample import Progress, read_made, read_shards, sample_stage, score_stage
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.train import MODEL, dpo_stage, sft_stage


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy on disk and the key that stands for its weights in the hashes of later stages."""

    label: str
    checkpoint: Checkpoint
    key: str

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """What the paper leaves open.

    Attributes:
      rounds: iterations.
      prompts_per_round: None shares all prompts evenly among the rounds; rounds never share one.
      method: "dpo", or "raft" (fine-tuning on the best of n).
      reference: the anchor of DPO: "sft" (the start, as in the paper), "previous" (the last policy), or "ema".
      ref_model_mixup_alpha: ema: reference <- alpha x policy + (1 - alpha) x reference after each round.
      init_from: each round's training starts from the "previous" policy or again from "sft".
      data_policy: train on the "fresh" round, on all so far ("accumulate"), or on the last `window` rounds.
      window: rounds that data_policy "window" trains on.
      shard_size: prompts in one shard file; what a killed run loses at most.
    """

    rounds: int = 3
    prompts_per_round: int | None = None
    method: Literal["dpo", "raft"] = "dpo"
    reference: Literal["sft", "previous", "ema"] = "sft"
    ref_model_mixup_alpha: float = 0.6
    init_from: Literal["previous", "sft"] = "previous"
    data_policy: Literal["fresh", "accumulate", "window"] = "fresh"
    window: int = 2
    shard_size: int = 128

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.shard_size < 1 or self.window < 1:
            raise ValueError(f"rounds = {self.rounds}, shard_size = {self.shard_size}, window = {self.window}: each "
                             "must be 1 or more")
        if self.window != 2 and self.data_policy != "window":
            raise ValueError(f"window = {self.window} has no effect with data_policy = {self.data_policy!r}; "
                             "set data_policy: window or leave it out")
        if self.ref_model_mixup_alpha != 0.6 and self.reference != "ema":
            raise ValueError(f"ref_model_mixup_alpha = {self.ref_model_mixup_alpha} has no effect with reference = "
                             f"{self.reference!r}; set reference: ema or leave it out")
        if self.method == "raft" and self.reference != "sft":
            raise ValueError(f"reference = {self.reference!r} has no effect with method: raft, which has no reference; "
                             "leave it out")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All options of a loop: how to sample, pair, train (`dpo`, or `sft` for RAFT) and iterate."""

    loop: LoopOptions
    sampling: SamplingConfig
    pairs: PairOptions
    dpo: PreferenceOptions
    raft: SftOptions


def round_prompts(prompts: Sequence[PromptGroup], loop: LoopOptions, number: int) -> list[PromptGroup]:
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
    return list(prompts[start:stop])


def with_capacity(sampling: SamplingConfig, prompts: Sequence[PromptGroup]) -> SamplingConfig:
    """The settings with one prompt capacity for all shards, so that all of them run the same compiled programs."""
    longest = max(len(p.prompt_ids) for p in prompts)
    capacity = sampling.prompt_length or rounded_up(longest)
    return dataclasses.replace(sampling, prompt_length=capacity)


def sample(context: Context, name: str, policy: Policy, prompts: Sequence[PromptGroup], sampling: SamplingConfig,
           dtype: str, shard_size: int) -> Stage:
    """The sampling stage of a policy over some prompts."""
    sampling = with_capacity(sampling, prompts)
    ids = [p.prompt_id for p in prompts]
    inputs = {"policy": policy.key, "prompts": groups_key(prompts), "prompt_ids": ids, "sampling": sampling,
              "dtype": dtype, "shard_size": shard_size, "stop_ids": policy.checkpoint.stop_ids}

    def body(folder: Path) -> Mapping[str, Any]:
        return sample_from(context, folder, policy.checkpoint, policy.key, prompts, sampling, dtype, shard_size,
                           context.progress(name))

    return context.run.stage(name, inputs, body)


def sample_from(context: Context, folder: Path, checkpoint: Checkpoint, key: str, prompts: Sequence[PromptGroup],
                sampling: SamplingConfig, dtype: str, shard_size: int, progress: Progress) -> Mapping[str, Any]:
    """What a sampling stage does: weights handed over, then shards; the report of both."""
    sampler = context.sampler(checkpoint.config, sampling, checkpoint, dtype)
    handed = context.handed_over(checkpoint, key, dtype)
    report = sample_stage(folder, sampler=sampler, compute=Compute(checkpoint.config, mesh=sampler.mesh),
                          params=handed.params, prompts=prompts, dtype=jnp.dtype(dtype), shard_size=shard_size,
                          progress=progress)
    return {**report, "hand_over": {"seconds": round(handed.seconds, 4), "bytes": handed.bytes,
                                    "mesh": dict(sampler.mesh.shape)}}


def score(context: Context, name: str, scorer: Scorer, sampled: Stage) -> Stage:
    """The scoring stage over what another stage wrote."""
    inputs = {"scorer": scorer.fingerprint, "as": scorer.name, "source": sampled.key}

    def body(folder: Path) -> Mapping[str, Any]:
        return score_stage(folder, scorer=scorer, source=sampled.folder, progress=context.progress(name))

    return context.run.stage(name, inputs, body)


def pairs(context: Context, name: str, scored: Stage, scorer: Scorer, options: PairOptions, method: str) -> Stage:
    """The pairing stage: preference pairs, or the best of n for RAFT, and the funnel of prompts."""
    inputs = {"source": scored.key, "scorer": scorer.name, "options": options, "method": method}

    def body(folder: Path) -> Mapping[str, Any]:
        select = best_of_n if method == "raft" else make_pairs
        groups, funnel = select(read_shards(scored.folder), scorer.name, options)
        if is_main_process():
            write_groups(folder / "pairs.jsonl", groups)
        return {"funnel": funnel.to_json()}

    return context.run.stage(name, inputs, body)


def train_pairs(context: Context, name: str, label: str, start: Policy, reference: Policy,
                data: Sequence[tuple[str, Path]], options: PreferenceOptions,
                eval_groups: Sequence[PromptGroup] = ()) -> Policy:
    """Preference optimisation from `start` on the groups of some files; `data` holds (key, path)."""
    inputs = {"start": start.key, "reference": reference.key if options.loss.needs_reference else None,
              "data": [key for key, _ in data], "options": options, "eval": groups_key(eval_groups)}

    def body(folder: Path) -> Mapping[str, Any]:
        groups = [group for _, path in data for group in read_made(path)]
        return dpo_stage(folder, options=options, params=context.params(start.checkpoint, start.key),
                         config=start.checkpoint.config,
                         reference=lambda: context.params(reference.checkpoint, reference.key),
                         reference_config=reference.checkpoint.config,
                         groups=groups, tokenizer_from=start.folder, base=str(start.folder), eval_groups=eval_groups,
                         chat_template=start.checkpoint.chat_template,
                         setting=context.setting(name, of_policy=True), cache=context.run.folder / "reference_cache")

    return _policy(context, label, context.run.stage(name, inputs, body))


def train_best(context: Context, name: str, label: str, start: Policy, data: Sequence[tuple[str, Path]],
               options: SftOptions) -> Policy:
    """RAFT's update: fine-tuning from `start` on the best responses."""
    inputs = {"start": start.key, "data": [key for key, _ in data], "options": options}

    def body(folder: Path) -> Mapping[str, Any]:
        groups = [group for _, path in data for group in read_made(path)]
        return sft_stage(folder, options=options, params=context.params(start.checkpoint, start.key),
                         config=start.checkpoint.config, groups=groups, tokenizer_from=start.folder,
                         base=str(start.folder), chat_template=start.checkpoint.chat_template,
                         setting=context.setting(name, of_policy=True))

    return _policy(context, label, context.run.stage(name, inputs, body))


def _policy(context: Context, label: str, stage: Stage) -> Policy:
    context.adopt(stage)
    return Policy(label, Checkpoint(stage.folder / MODEL), stage.key)


def mixed_reference(context: Context, name: str, reference: Policy, policy: Policy, alpha: float) -> Policy:
    """alpha x policy + (1 - alpha) x reference, weight by weight (TR-DPO, arXiv 2404.09656)."""
    inputs = {"reference": reference.key, "policy": policy.key, "alpha": alpha}

    def body(folder: Path) -> Mapping[str, Any]:
        old, new = (context.params(p.checkpoint, p.key) for p in (reference, policy))
        mixed: Params = jax.tree.map(lambda a, b: alpha * b + (1 - alpha) * a, old, new)
        save_hf(folder / MODEL, mixed, policy.checkpoint.config, tokenizer_from=policy.folder,
                chat_template=policy.checkpoint.chat_template)
        return {}

    return _policy(context, f"{name}", context.run.stage(name, inputs, body))


def iterate(context: Context, label: str, start: Policy, prompts: Sequence[PromptGroup], scorer: Scorer,
            recipe: Recipe) -> list[Policy]:
    """Runs the loop and returns the policies of rounds 1 to T.

    Args:
      label: stages are called `label/round-1/sample` and so on; policies `label-1`, ...
      prompts: all prompts, rendered for the policy.
    """
    loop, policies = recipe.loop, [start]
    reference = start
    data: list[tuple[str, Path]] = []
    rounds = [round_prompts(prompts, loop, number) for number in range(1, loop.rounds + 1)]  # all there, or no round
    for number, share in enumerate(rounds, start=1):
        stem = f"{label}/round-{number}"
        latest = policies[-1]
        sampling = dataclasses.replace(recipe.sampling, seed=recipe.sampling.seed + 1000 * number)
        sampled = sample(context, f"{stem}/sample", latest, share, sampling, recipe.dpo.dtype,
                         loop.shard_size)
        scored = score(context, f"{stem}/score", scorer, sampled)
        paired = pairs(context, f"{stem}/pairs", scored, scorer, recipe.pairs, loop.method)
        data.append((paired.key, paired.folder / "pairs.jsonl"))
        kept = {"fresh": data[-1:], "accumulate": data, "window": data[-loop.window :]}[loop.data_policy]
        origin = latest if loop.init_from == "previous" else start
        name, new = f"{stem}/{loop.method}", f"{label}-{number}"
        if loop.method == "raft":
            policy = train_best(context, name, new, origin, kept, recipe.raft)
        else:
            anchor = latest if loop.reference == "previous" else reference
            policy = train_pairs(context, name, new, origin, anchor, kept, recipe.dpo)
        if loop.reference == "ema" and number < loop.rounds:
            reference = mixed_reference(context, f"{stem}/reference", reference, policy, loop.ref_model_mixup_alpha)
        policies.append(policy)
    return policies[1:]
