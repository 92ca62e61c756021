"""Sampling every prompt's continuations from a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import LENGTH, PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import Notice
from rlhf_jax.sampling import LogpTolerance, Sampler, logp_tolerance
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import announce_kept, read_shards, shard_name, shards_here
from rlhf_jax.workflow.stages.train import funnels


class LogpMismatch(RuntimeError):
    """The sampler's log-probs are not those of the trainer's forward pass: nothing trained on them would be right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStage(Stage):
    """Sampling into shards of `shard_size` prompts; finished shards are kept as they are.

    The first shard is checked against the trainer's forward pass.

    Attributes:
      policy: who answers.
      prompts: groups without responses.
      dtype: of weights, caches and computation.
    """

    policy: Checkpoint
    prompts: GroupSource
    sampling: SamplingConfig
    dtype: str
    shard_size: int

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        prompts = self.prompts.read()
        sampling = with_capacity(self.sampling, prompts, self.policy.config.max_position)
        sampler = context.sampler(self.policy, sampling, self.dtype)
        handed = context.handed_over(self.policy, self.dtype)
        report = self._write_shards(folder, context, sampler, handed.params, prompts)
        return {**report, "hand_over": {"seconds": round(handed.seconds, 4), "bytes": handed.bytes,
                                        "mesh": dict(sampler.mesh.shape)}, **funnels([self.prompts])}

    def preview(self, context: Context) -> Preview:
        prompts = self.prompts.read()
        with_capacity(self.sampling, prompts, self.policy.config.max_position)
        return Preview(self.policy, self.prompts, prompts)

    def _write_shards(self, folder: Path, context: Context, sampler: Sampler, params: Params,
                      prompts: Sequence[PromptGroup]) -> Mapping[str, Any]:
        dtype, size = jnp.dtype(self.dtype), self.shard_size
        working, done, notice = cast(params, dtype), 0, Notice(folder)
        gaps: Mapping[str, float] = {}
        announce_kept(folder, -(-len(prompts) // size), context)
        with count_compiles() as compiles:
            for number in shards_here(-(-len(prompts) // size), notice):
                path, some = folder / shard_name(number), prompts[number * size : (number + 1) * size]
                if not path.is_file():
                    found = {}
                    for index, group in sampler.generate(working, some):
                        found[index] = group
                        context.progress(done + len(found), len(prompts))
                        if notice.noted():
                            break
                    if len(found) < len(some):
                        continue
                    write_groups(path, [found[i] for i in range(len(some))])
                if number == 0:
                    first = read_groups(path)[: sampler.sampling.slots]
                    compute = Compute(self.policy.config, mesh=sampler.mesh)
                    seen = check_logps(compute, working, first, sampler, dtype)
                    gaps = {"logps_max_difference": seen.largest, "logps_mean_difference": seen.mean}
                done += len(some)
                context.progress(min(done * jax.process_count(), len(prompts)), len(prompts))
        groups = read_shards(folder)
        return {"prompts": len(groups), "responses": sum(len(g.responses) for g in groups),
                **generation_metrics(groups), **gaps, "compiled_programs": compiles.programs}


def with_capacity(sampling: SamplingConfig, prompts: Sequence[PromptGroup], positions: int) -> SamplingConfig:
    """The settings with one prompt capacity for all shards, so that all of them run the same compiled programs.

    Raises ValueError where a prompt and its response pass the model's `positions`.
    """
    capacity = sampling.capacity(max(len(p.prompt_ids) for p in prompts), positions)
    return dataclasses.replace(sampling, prompt_length=capacity)


def generation_metrics(groups: Sequence[PromptGroup]) -> dict[str, float]:
    """Lengths of what was sampled, under TRL's names; lengths in tokens."""
    lengths = np.array([len(r.ids) for g in groups for r in g.responses], np.float64)
    clipped = np.array([r.finish_reason == LENGTH for g in groups for r in g.responses])
    ended = lengths[~clipped]
    return {"completions/mean_length": float(lengths.mean()), "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()), "completions/clipped_ratio": float(clipped.mean()),
            **({"completions/mean_terminated_length": float(ended.mean())} if len(ended) else {})}


def check_logps(compute: Compute, params: Params, groups: Sequence[PromptGroup], sampler: Sampler, dtype: Any
                ) -> LogpTolerance:
    """Largest and mean |sampler - trainer| log-prob difference over the tokens of `groups`.

    Raises:
      LogpMismatch: above what `logp_tolerance` allows for the dtypes of computation and cache.
    """
    cache_dtype = sampler.sampling.cache_dtype
    allowed = logp_tolerance(cache_dtype, dtype)
    found = logps_map(compute, sampler.mesh)(params, groups)
    gaps = np.concatenate([np.abs(ours - r.logps) for group, per in zip(groups, found, strict=True)
                           for r, ours in zip(group.responses, per, strict=True) if r.logps is not None])
    seen = LogpTolerance(float(gaps.max()), float(gaps.mean()))
    if not (seen.largest <= allowed.largest and seen.mean <= allowed.mean):
        raise LogpMismatch(f"the sampler's log-probs differ from the trainer's forward by up to {seen.largest:.2e}, "
                           f"{seen.mean:.2e} in the mean ({jnp.dtype(dtype).name}, cache_dtype {cache_dtype}: allowed "
                           f"{allowed.largest:.0e} and {allowed.mean:.0e}). The two run different models: please "
                           "report this with the model's config.json")
    return seen
