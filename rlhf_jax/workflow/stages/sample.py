"""Sampling every prompt's continuations from a policy."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import LENGTH, PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import Notice, gather
from rlhf_jax.sampling import LogpTolerance, Sampler, check_slots, logp_tolerance
from rlhf_jax.sampling.ending import Ending
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview
from rlhf_jax.workflow.engine import EngineSource, check_whole
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import announce_kept, scan_shards, shard_name, shards_here
from rlhf_jax.workflow.stages.train import funnels


class LogpMismatch(RuntimeError):
    """The sampler's log-probs are not those of the trainer's forward pass: nothing trained on them would be right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStage(Stage):
    """Sampling into shards of `shard_size` prompts; finished shards are kept as they are.

    The first shard is checked against the trainer's forward pass; where an engine outside samples, each one is.

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

    def inputs(self) -> dict[str, Any]:
        """Of an engine what samples depend on: not where its servers are, nor how they are asked and checked."""
        found, engine = super().inputs(), self.sampling.engine
        engine_key = {} if engine is None else {"engine": engine.sampled_by}
        return found | {"sampling": {k: v for k, v in found["sampling"].items() if k != "engine"} | engine_key}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        check_whole(self.policy, self.sampling)
        prompts = self.prompts.read()
        sampling = with_capacity(self.sampling, prompts, self.policy.config.max_position)
        handed = context.handed_over(self.policy, sampling, self.dtype)
        working = cast(handed.params, jnp.dtype(self.dtype))
        source: Source
        if sampling.engine is None:
            source = _Ours(context.sampler(self.policy, sampling, self.dtype), working, jnp.dtype(self.dtype))
        else:
            left = any(not (folder / shard_name(n)).is_file() for n in range(-(-len(prompts) // self.shard_size)))
            source = EngineSource(self.policy, sampling, self.dtype, working, folder, context)
            source.hand_over(prompts, needed=left)
        report = self._write_shards(folder, context, source, prompts)
        return {**report, "hand_over": {"seconds": round(handed.seconds, 4), "bytes": handed.bytes,
                                        "mesh": dict(source.mesh.shape),
                                        "why": context.layout(self.policy, sampling, self.dtype).why},
                **funnels([self.prompts])}

    def preview(self, context: Context) -> Preview:
        check_whole(self.policy, self.sampling)
        prompts = self.prompts.read()
        check_room(context, self.policy, prompts, self.sampling, self.dtype)
        return Preview(self.policy, self.prompts, prompts)

    def _write_shards(self, folder: Path, context: Context, source: Source, prompts: Sequence[PromptGroup]
                      ) -> Mapping[str, Any]:
        size, done, notice = self.shard_size, 0, Notice(folder)
        gaps = list[LogpTolerance]()

        def shown(before: int, count: int) -> None:
            context.progress(before + count, len(prompts))

        announce_kept(folder, -(-len(prompts) // size), context)
        with count_compiles() as compiles:
            for number in shards_here(-(-len(prompts) // size), notice):
                path, some = folder / shard_name(number), list(prompts[number * size : (number + 1) * size])
                if not path.is_file():
                    groups = source.sample(number, some, notice, partial(shown, done))
                    if groups is None:
                        continue
                    write_groups(path, groups)
                seen = source.check(number, path)
                gaps += [] if seen is None else [seen]
                done += len(some)
                context.progress(min(done * jax.process_count(), len(prompts)), len(prompts))
        return {**generation_metrics(scan_shards(folder)), **_gaps(gaps), **source.report(),
                "compiled_programs": compiles.programs}


class Source(Protocol):
    """What samples the shards of a stage. mesh: of this process, on which they are checked."""

    mesh: Mesh

    def sample(self, number: int, prompts: Sequence[PromptGroup], notice: Notice, progress: Callable[[int], None]
               ) -> list[PromptGroup] | None:
        """The prompts of a shard with their responses; None if this process is asked to leave meanwhile."""
        ...

    def check(self, number: int, path: Path) -> LogpTolerance | None:
        """How far a shard's log-probs lie from the trainer's forward pass; None if it was not looked at."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What else the stage's report says."""
        ...


class _Ours:
    """Our own sampler."""

    def __init__(self, sampler: Sampler, params: Params, dtype: Any):
        self._sampler, self._params, self._dtype, self.mesh = sampler, params, dtype, sampler.mesh

    def sample(self, number: int, prompts: Sequence[PromptGroup], notice: Notice, progress: Callable[[int], None]
               ) -> list[PromptGroup] | None:
        found = {}
        for index, group in self._sampler.generate(self._params, prompts):
            found[index] = group
            progress(len(found))
            if notice.noted():
                break
        return None if len(found) < len(prompts) else [found[i] for i in range(len(prompts))]

    def check(self, number: int, path: Path) -> LogpTolerance | None:
        if number:
            return None
        first = read_groups(path)[: self._sampler.sampling.slots]
        compute = Compute(self._sampler.config, mesh=self.mesh)
        return check_logps(compute, self._params, first, self._sampler, self._dtype)

    def report(self) -> Mapping[str, Any]:
        return {}


def _gaps(seen: Sequence[LogpTolerance]) -> dict[str, float]:
    """Largest and mean difference over the shards that were looked at, by all processes."""
    found = [one for some in gather([list(one) for one in seen]) for one in some]
    return {"logps_max_difference": max(largest for largest, _ in found),
            "logps_mean_difference": float(np.mean([mean for _, mean in found]))}


def with_capacity(sampling: SamplingConfig, prompts: Sequence[PromptGroup], positions: int) -> SamplingConfig:
    """The settings with one prompt capacity for all shards, so that all of them run the same compiled programs.

    Raises ValueError where a prompt and its response pass the model's `positions`.
    """
    capacity = sampling.capacity(max(len(p.prompt_ids) for p in prompts), positions)
    return dataclasses.replace(sampling, prompt_length=capacity)


def check_room(context: Context, policy: Checkpoint, prompts: Sequence[PromptGroup], sampling: SamplingConfig,
               dtype: str) -> None:
    """What a stage that samples would find out when it begins, long before.

    Raises ValueError where a prompt and its response pass the model's positions, a stop string can never be found, or
    the devices of a process do not divide the slots.
    """
    settings = with_capacity(sampling, prompts, policy.config.max_position)
    Ending.by(policy.stop_ids, settings.stop_strings, policy.decode_text)
    if settings.engine is None:
        check_slots(settings, context.layout(policy, settings, dtype).mesh)


def generation_metrics(groups: Iterable[PromptGroup]) -> dict[str, float]:
    """How many prompts and responses there are, and the lengths of these in tokens under TRL's names; in one pass."""
    prompts = responses = tokens = clipped = ended_tokens = longest = 0
    shortest = sys.maxsize
    for group in groups:
        prompts += 1
        for response in group.responses:
            length, cut = len(response.ids), response.finish_reason == LENGTH
            responses, tokens = responses + 1, tokens + length
            clipped, ended_tokens = clipped + cut, ended_tokens + length * (not cut)
            shortest, longest = min(shortest, length), max(longest, length)
    ended = responses - clipped
    return {"prompts": prompts, "responses": responses, "completions/mean_length": tokens / responses,
            "completions/min_length": float(shortest), "completions/max_length": float(longest),
            "completions/clipped_ratio": clipped / responses,
            **({"completions/mean_terminated_length": ended_tokens / ended} if ended else {})}


def check_logps(compute: Compute, params: Params, groups: Sequence[PromptGroup], sampler: Sampler, dtype: Any
                ) -> LogpTolerance:
    """Largest and mean |sampler - trainer| log-prob difference over the tokens of `groups`.

    Raises:
      LogpMismatch: above what `logp_tolerance` allows for the dtypes of computation, caches and weights.
    """
    cache_dtype, weights_dtype = sampler.sampling.cache_dtype, sampler.sampling.weights_dtype
    allowed = logp_tolerance(dtype, cache_dtype, weights_dtype)
    found = logps_map(compute, sampler.mesh)(params, groups)
    gaps = np.concatenate([np.abs(ours - r.logps) for group, per in zip(groups, found, strict=True)
                           for r, ours in zip(group.responses, per, strict=True) if r.logps is not None])
    seen = LogpTolerance(float(gaps.max()), float(gaps.mean()))
    if not (seen.largest <= allowed.largest and seen.mean <= allowed.mean):
        raise LogpMismatch(f"the sampler's log-probs differ from the trainer's forward by up to {seen.largest:.2e}, "
                           f"{seen.mean:.2e} in the mean ({jnp.dtype(dtype).name}, cache_dtype {cache_dtype}, "
                           f"weights_dtype {weights_dtype}: allowed {allowed.largest:.0e} and {allowed.mean:.0e}). "
                           "The two run different models: please report this with the model's config.json")
    return seen
