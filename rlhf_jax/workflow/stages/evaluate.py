"""Evaluating a scorer on held-out preference pairs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.config.data import GradedOptions, RowOptions
from rlhf_jax.data.example import as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import named
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.rows import Example
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.preference import preference_accuracy
from rlhf_jax.parallel import gather_counts, is_main_process, map_over_processes
from rlhf_jax.scoring import Comparing, Scorer
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, data_key, read_data
from rlhf_jax.workflow.products import ROWS
from rlhf_jax.workflow.stage import Stage


@dataclasses.dataclass(frozen=True)
class PreferenceRows:
    """Preference rows as text, which every scorer renders by itself. quarantine: file for unusable ones."""

    rows: RowOptions
    graded: GradedOptions = GradedOptions()
    quarantine: Path | None = None

    @cached_property
    def key(self) -> str:
        return data_key("preference", self.rows, self.graded)

    def read(self) -> tuple[list[Example], Funnel]:
        return read_data(self.rows, "preference", self.quarantine, self.graded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Accuracy, likelihood and calibration of a scorer; seed: of the bootstrap."""

    scorer: Scorer
    data: PreferenceRows
    seed: int = 0

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=self.data.read()[1])

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        examples, funnel = self.data.read()
        context.run.announce(str(funnel))
        report, verdicts = evaluate_scorer(self.scorer, examples, funnel, self.seed)
        if is_main_process():
            write_jsonl_atomic(folder / ROWS, [verdict.to_json() for verdict in verdicts])
        return report


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a scorer says of one pair. scores: of chosen and rejected, or P(chosen is better); empty where it failed."""

    prompt_id: str
    prompt: str
    pair: tuple[int, int]
    scores: Mapping[str, float]
    subset: Any = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.prompt_id, "subset": self.subset, "pair": self.pair, "scores": self.scores,
                "result": self.result}

    @property
    def result(self) -> float | None:
        """1 for the chosen, 0 for the rejected, a half for a tie; None where the scorer failed."""
        if not self.scores:
            return None
        gap = self.scores["p"] - 0.5 if "p" in self.scores else self.scores["chosen"] - self.scores["rejected"]
        return 0.5 if gap == 0 else float(gap > 0)


def verdicts_on(scorer: Scorer, examples: Sequence[Example]) -> list[Verdict]:
    """The scorer's verdict on every pair, in order."""
    groups = [as_text(example) for example in examples]
    pairs = [(g, chosen, rejected) for g in groups for chosen, rejected in g.pairs]
    scores: list[Mapping[str, float]]
    if isinstance(scorer, Comparing):
        games = [(g.prompt, g.responses[c].text, g.responses[r].text) for g, c, r in pairs]
        found = map_over_processes(games, scorer.compare)
        scores = [{} if p is None else {"p": p} for p in found]
    else:
        by_group = map_over_processes(groups, scorer.score)
        sides = [(v[c], v[r]) for g, v in zip(groups, by_group, strict=True) for c, r in g.pairs]
        scores = [{} if c is None or r is None else {**named("chosen", c), **named("rejected", r)} for c, r in sides]
    scorer.release()
    return [Verdict(g.prompt_id, prompt_name(g), (c, r), s, g.extra.get("subset"))
            for (g, c, r), s in zip(pairs, scores, strict=True)]


def evaluate_scorer(scorer: Scorer, examples: Sequence[Example], funnel: Funnel, seed: int
                    ) -> tuple[dict[str, Any], list[Verdict]]:
    """Accuracy, likelihood and calibration of a scorer on held-out preference pairs, intervals by prompt.

    Returns:
      The JSON of PreferenceReport (`pairs` were judged); `pairs_read`; `failures`, of responses or comparisons that got
      no verdict, by reason; and `funnel`, with the rows of which no pair was judged among the dropped. And the verdict
      on every pair.

    Raises:
      ValueError: no pair could be judged.
    """
    before = Counter(scorer.failures)
    verdicts = verdicts_on(scorer, examples)
    failures = gather_counts(scorer.failures - before)
    judged = [verdict for verdict in verdicts if verdict.scores]
    if not judged:
        raise ValueError(f"none of the {len(verdicts)} pairs could be judged; responses or comparisons failed for "
                         f"these reasons: {failures}. Raise scorer.max_length, or see what is unlike the scorer's own "
                         "data")
    clusters = [verdict.prompt for verdict in judged]
    if isinstance(scorer, Comparing):
        report = preference_accuracy(probabilities=[v.scores["p"] for v in judged], clusters=clusters, seed=seed)
    else:
        margins = [v.scores["chosen"] - v.scores["rejected"] for v in judged]
        report = preference_accuracy(margins, clusters=clusters, seed=seed)
    reason = next(iter(failures)) if len(failures) == 1 else "not_judged"
    lost = len(examples) - len({verdict.prompt_id for verdict in judged})
    funnel = funnel.merged(Funnel(dropped=+Counter({reason: lost})))
    return {**report.to_json(), "pairs_read": len(verdicts), "failures": failures, "funnel": funnel.to_json()}, verdicts
