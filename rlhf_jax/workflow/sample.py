"""The sampling and scoring stages: numbered shards of groups, each written whole, none written twice.

Every process makes every n-th shard with its own devices and looks at no other process meanwhile; what is in a shard
does not depend on who made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.groups import LENGTH, PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import Notice, gather_counts
from rlhf_jax.sampling import LogpTolerance, Sampler, logp_tolerance
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.stage import check_made

Progress = Callable[[int, int], None]
"""(prompts done, prompts in all) -> None."""


class LogpMismatch(RuntimeError):
    """The sampler's log-probs are not those of the trainer's forward pass: nothing trained on them would be right."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The finished shards of a stage, in order.

    Raises:
      ValueError: where there is none, where one is missing between others, or where the stage's record has others.
      DamagedProduct: where one is no longer what the stage made.
    """
    record, found = check_made(folder), sorted(folder.glob("shard-*.jsonl"))
    if not found:
        raise ValueError(f"{folder} holds no shard-*.jsonl; give the output_dir of a finished `generate` or `score`")
    made = [name for name in (record or {}).get("products", ()) if name.startswith("shard-")]
    odd = {path.name for path in found} ^ {*(made or map(shard_name, range(len(found))))}
    if odd:
        raise ValueError(f"{folder} does not hold the shards of one stage: {min(odd)} is missing or was added. Bring "
                         "back what belongs there, or make them again in another folder")
    return found


def read_shards(folder: Path) -> list[PromptGroup]:
    """All groups of a stage."""
    return [group for path in shards(folder) for group in read_groups(path)]


def read_made(path: Path) -> list[PromptGroup]:
    """The groups of a file that a stage made. Raises DamagedProduct where it is no longer that."""
    check_made(path)
    return read_groups(path)


def shards_here(shards: int, notice: Notice) -> Iterator[int]:
    """Numbers of the shards that this process makes: every n-th one, unless the run is asked to leave.

    Raises:
      Preempted: in that case, on all processes, once each has finished the shard it was at.
    """
    for number in range(jax.process_index(), shards, jax.process_count()):
        if notice.seen():
            break
        yield number
    notice.leave_together("finished shards are kept")


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


def sample_stage(folder: Path, *, sampler: Sampler, compute: Compute, params: Params, prompts: Sequence[PromptGroup],
                 dtype: Any, shard_size: int, progress: Progress) -> Mapping[str, Any]:
    """Samples every prompt's continuations into shards of `shard_size` prompts; finished shards are kept as they are.

    The first shard is checked against the trainer's forward pass.
    """
    working, done, notice = cast(params, dtype), 0, Notice(folder)
    gaps: Mapping[str, float] = {}
    with count_compiles() as compiles:
        for number in shards_here(-(-len(prompts) // shard_size), notice):
            path, some = folder / shard_name(number), prompts[number * shard_size : (number + 1) * shard_size]
            if not path.is_file():
                found = {}
                for index, group in sampler.generate(working, some):
                    found[index] = group
                    progress(done + len(found), len(prompts))
                    if notice.noted():
                        break
                if len(found) < len(some):
                    continue
                write_groups(path, [found[i] for i in range(len(some))])
            if number == 0:
                first = read_groups(path)[: sampler.sampling.slots]
                seen = check_logps(compute, working, first, sampler, dtype)
                gaps = {"logps_max_difference": seen.largest, "logps_mean_difference": seen.mean}
            done += len(some)
            progress(min(done * jax.process_count(), len(prompts)), len(prompts))
    groups = read_shards(folder)
    return {"prompts": len(groups), "responses": sum(len(g.responses) for g in groups),
            **generation_metrics(groups), **gaps, "compiled_programs": compiles.programs}


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
        for number in shards_here(len(paths), Notice(folder)):
            target = folder / paths[number].name
            if not target.is_file():
                groups = read_groups(paths[number])
                scores = scorer.score(groups)
                scored = [g.with_scores(scorer.name, s) for g, s in zip(groups, scores, strict=True)]
                write_groups(target, scored)
            done += 1
            progress(min(done * jax.process_count(), len(paths)), len(paths))
    scorer.let_go()
    groups = read_shards(folder)
    unscored = sum(scorer.name not in r.scores for g in groups for r in g.responses)
    return {"prompts": len(groups), **score_metrics(groups, scorer.name), "unscored": unscored,
            "failures": gather_counts(scorer.failures - before), "compiled_programs": compiles.programs}
