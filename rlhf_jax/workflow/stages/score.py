"""Adding a scorer's verdicts to sampled responses."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.parallel import Notice, gather_counts
from rlhf_jax.scoring import Scorer
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import ShardFolder, announce_kept, read_shards, shards, shards_here


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage):
    """Scoring every shard of `source`, under the scorer's name."""

    scorer: Scorer
    source: ShardFolder

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "as": self.scorer.name}

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=Funnel(read=len(self.source.read())))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        scorer, paths, done = self.scorer, shards(self.source.folder), 0
        before = Counter(scorer.failures)
        announce_kept(folder, len(paths), context)
        with count_compiles() as compiles:
            for number in shards_here(len(paths), Notice(folder)):
                target = folder / paths[number].name
                if not target.is_file():
                    groups = read_groups(paths[number])
                    scores = scorer.score(groups)
                    scored = [g.with_scores(scorer.name, s) for g, s in zip(groups, scores, strict=True)]
                    write_groups(target, scored)
                done += 1
                context.progress(min(done * jax.process_count(), len(paths)), len(paths))
        scorer.release()
        groups = read_shards(folder)
        unscored = sum(scorer.name not in r.scores for g in groups for r in g.responses)
        return {"prompts": len(groups), **score_metrics(groups, scorer.name), "unscored": unscored,
                "failures": gather_counts(scorer.failures - before), "compiled_programs": compiles.programs}


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
