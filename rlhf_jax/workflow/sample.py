"""The sampling and scoring stages: numbered shards of groups, each written whole, none written twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.groups import LENGTH, PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import Params
from rlhf_jax.sampling import Sampler
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute

Progress = Callable[[int, int], None]
"""(prompts done, prompts in all) -> None."""


class LogpMismatch(RuntimeError):
    """The sampler's log-probs are not those of the trainer's forward pass: nothing trained on them would be right."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The finished shards of a stage, in order. Raises ValueError where there is none."""
    found = sorted(folder.glob("shard-*.jsonl"))
    if not found:
        raise ValueError(f"{folder} holds no shard-*.jsonl; give the output_dir of a finished `generate` or `score`")
    return found


def read_shards(folder: Path) -> list[PromptGroup]:
    """All groups of a stage."""
    return [group for path in shards(folder) for group in read_groups(path)]


def _pieces(groups: Sequence[PromptGroup], size: int) -> Iterator[tuple[int, Sequence[PromptGroup]]]:
    for number, start in enumerate(range(0, len(groups), size)):
        yield number, groups[start : start + size]


def generation_metrics(groups: Sequence[PromptGroup]) -> dict[str, float]:
    """Lengths of what was sampled, under TRL's names; lengths in tokens."""
    lengths = np.array([len(r.ids) for g in groups for r in g.responses], np.float64)
    clipped = np.array([r.finish_reason == LENGTH for g in groups for r in g.responses])
    ended = lengths[~clipped]
    return {"completions/mean_length": float(lengths.mean()), "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()), "completions/clipped_ratio": float(clipped.mean()),
            **({"completions/mean_terminated_length": float(ended.mean())} if len(ended) else {})}


def check_logps(compute: Compute, params: Params, groups: Sequence[PromptGroup], sampler: Sampler, dtype: Any,
                tolerance: float) -> float:
    """Largest |sampler - trainer| log-prob difference over `groups`; raises LogpMismatch above `tolerance`."""
    found = logps_map(compute, sampler.mesh)(params, groups)
    worst = max(float(np.max(np.abs(ours - r.logps))) for group, per in zip(groups, found, strict=True)
                for r, ours in zip(group.responses, per, strict=True) if r.logps is not None)
    if not worst <= tolerance:
        raise LogpMismatch(f"the sampler's log-probs differ from the trainer's forward by up to {worst:.2e} "
                           f"({jnp.dtype(dtype).name}, allowed {tolerance:.0e}). The two run different models: please "
                           "report this with the model's config.json")
    return worst


def sample_stage(folder: Path, *, sampler: Sampler, compute: Compute, params: Params, prompts: Sequence[PromptGroup],
                 dtype: Any, shard_size: int, progress: Progress) -> Mapping[str, Any]:
    """Samples every prompt's continuations into shards of `shard_size` prompts; finished shards are kept as they are.

    The first shard is checked against the trainer's forward pass.
    """
    working, done, worst = sampler.place(params), 0, None
    tolerance = 1e-4 if jnp.dtype(dtype) == jnp.float32 else 0.5
    with count_compiles() as compiles:
        for number, some in _pieces(prompts, shard_size):
            path = folder / shard_name(number)
            if not path.is_file():
                found = {}
                for index, group in sampler.generate(working, some):
                    found[index] = group
                    progress(done + len(found), len(prompts))
                write_groups(path, [found[i] for i in range(len(some))])
            if number == 0:
                first = read_groups(path)[: sampler.sampling.slots]
                worst = check_logps(compute, working, first, sampler, dtype, tolerance)
            done += len(some)
            progress(done, len(prompts))
    groups = read_shards(folder)
    return {"prompts": len(groups), "responses": sum(len(g.responses) for g in groups),
            **generation_metrics(groups), "logps_max_difference": worst, "compiled_programs": compiles.programs}


def score_metrics(groups: Sequence[PromptGroup], name: str) -> dict[str, float]:
    """Mean score, mean of the best of n, spread within a prompt; TRL's names."""
    per_prompt = [[r.scores[name] for r in g.responses if name in r.scores] for g in groups]
    per_prompt = [scores for scores in per_prompt if scores]
    if not per_prompt:
        raise ValueError(f"scorer {name!r} gave no score to any response; see `failures` for the reasons")
    spread = np.array([np.std(scores) for scores in per_prompt])
    return {"reward": float(np.mean([np.mean(s) for s in per_prompt])), "reward_std": float(spread.mean()),
            "reward_best_of_n": float(np.mean([np.max(s) for s in per_prompt])),
            "frac_reward_zero_std": float(np.mean(spread == 0))}


def score_stage(folder: Path, *, scorer: Scorer, source: Path, progress: Progress) -> Mapping[str, Any]:
    """Adds a scorer's verdicts to every shard of `source`."""
    paths, done, before = shards(source), 0, Counter(scorer.failures)
    with count_compiles() as compiles:
        for path in paths:
            groups = read_groups(path)
            target = folder / path.name
            if not target.is_file():
                scores = scorer.score(groups)
                scored = [g.with_scores(scorer.name, s) for g, s in zip(groups, scores, strict=True)]
                write_groups(target, scored)
            done += 1
            progress(done, len(paths))
    groups = read_shards(folder)
    unscored = sum(scorer.name not in r.scores for g in groups for r in g.responses)
    return {"prompts": len(groups), **score_metrics(groups, scorer.name), "unscored": unscored,
            "failures": dict(scorer.failures - before),
            "compiled_programs": compiles.programs}
