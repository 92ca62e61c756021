"""Adding a scorer's verdicts to sampled responses."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rlhf_jax.config.scorer import WITH_HEADS
from rlhf_jax.data.features import write_features
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_groups, write_jsonl_atomic
from rlhf_jax.data.layouts import scored_row
from rlhf_jax.parallel import Notice, gather, gather_counts, on_main
from rlhf_jax.scoring import HasStates, Scorer
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import FEATURES, RLHFLOW
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.shards import Shards, announce_kept, counted, scan_shards, shards_here


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage):
    """Scoring every shard of `source`, under the scorer's name.

    Attributes:
      layout: "rlhflow" writes RLHFLOW beside the shards, rows as RLHFlow's programs read them.
      features: the hidden states that the scorer reads answers by go into FEATURES, a shard for each scored one.
    """

    scorer: Scorer
    source: Shards
    layout: Literal["groups", "rlhflow"] = "groups"
    features: bool = False

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "as": self.scorer.name}

    def preview(self, context: Context) -> Preview:
        del context
        if self.features:
            states_of(self.scorer)
        return Preview(funnel=counted(self.source))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        scorer, names, done = self.scorer, self.source.names, 0
        described = states_of(scorer) if self.features else None
        before = Counter(scorer.failures)
        announce_kept(folder, len(names), context)
        with count_compiles() as compiles:
            for number in shards_here(len(names), Notice(folder)):
                target = folder / names[number]
                if not target.is_file():
                    groups = self.source.read_shard(number)
                    verdicts = scorer.score(groups)
                    scored = [g.with_scores(scorer.name, v) for g, v in zip(groups, verdicts, strict=True)]
                    if described is not None:
                        write_states(folder / FEATURES / names[number], scored, described)
                    write_groups(target, scored)
                done += 1
                context.progress(min(done * jax.process_count(), len(names)), len(names))
        scorer.release()
        gather(None)  # the others may still be at their shards
        if self.layout == "rlhflow":
            on_main(lambda: write_jsonl_atomic(folder / RLHFLOW, (scored_row(group, scorer.name)
                                                                  for group in scan_shards(folder))))
        funnel = {} if self.source.funnel is None else {"funnel": self.source.funnel.to_json()}
        return {**score_metrics(scan_shards(folder), scorer.name), **funnel,
                "failures": gather_counts(scorer.failures - before), "compiled_programs": compiles.programs}


def states_of(scorer: Scorer) -> HasStates:
    """The scorer, if it has hidden states to give. Raises ValueError where it has none."""
    if not isinstance(scorer, HasStates):
        raise ValueError(f"features are the hidden states of a reward model, and the scorer {scorer.name!r} has none; "
                         f"score with kind: {' or '.join(WITH_HEADS)}, or choose a pair rule other than enhancer")
    return scorer


def write_states(path: Path, groups: Sequence[PromptGroup], scorer: HasStates) -> None:
    """A shard of the feature store, float32, of the answers that the scorer can read; no file where it reads none."""
    kept, states = [], []
    for group, found in zip(groups, scorer.states(groups), strict=True):
        there = [(response, state) for response, state in zip(group.responses, found, strict=True) if state is not None]
        if there:
            kept.append(dataclasses.replace(group, responses=tuple(response for response, _ in there)))
            states.append([state for _, state in there])
    if kept:
        path.parent.mkdir(exist_ok=True)
        write_features(path, kept, states, np.float32)


def score_metrics(groups: Iterable[PromptGroup], name: str) -> dict[str, float]:
    """How many prompts there are, mean score, mean of the best of n, spread within a prompt, and how many responses
    have no score, in one pass; TRL's names."""
    prompts = scored = unscored = without_spread = 0
    means, spreads, bests = 0.0, 0.0, 0.0
    for group in groups:
        scores = [response.scores[name] for response in group.responses if name in response.scores]
        prompts, unscored = prompts + 1, unscored + len(group.responses) - len(scores)
        if scores:
            scored, spread = scored + 1, float(np.std(scores))
            means, spreads, bests = means + float(np.mean(scores)), spreads + spread, bests + max(scores)
            without_spread += spread == 0
    if not scored:
        raise ValueError(f"scorer {name!r} gave no score to any response; see `failures` for the reasons")
    return {"prompts": prompts, "reward": means / scored, "reward_std": spreads / scored,
            "reward_best_of_n": bests / scored, "frac_reward_zero_std": without_spread / scored, "unscored": unscored}
