"""Evaluating a scorer on held-out preference pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config.data import GradedOptions, RowOptions
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.rows import Example
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.preference import PreferenceReport, pair_margins, preference_accuracy
from rlhf_jax.parallel import divided
from rlhf_jax.scoring import Comparing, Scorer
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, data_key, read_data
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
        del folder, context
        examples, funnel = self.data.read()
        return {**evaluate_scorer(self.scorer, examples, self.seed).to_json(), "funnel": funnel.to_json()}


def evaluate_scorer(scorer: Scorer, examples: Sequence[Example], seed: int) -> PreferenceReport:
    """Accuracy, likelihood and calibration of a scorer on held-out preference pairs, intervals by prompt."""
    nothing = np.zeros(0, np.int32)
    groups = [PromptGroup(e.prompt_id, nothing, tuple(Response(nothing, nothing, text) for text in e.responses),
                          e.prompt, e.pairs) for e in examples]
    if isinstance(scorer, Comparing):
        pairs = [(g, chosen, rejected) for g in groups for chosen, rejected in g.pairs]
        found = divided([(g.prompt, g.responses[c].text, g.responses[r].text) for g, c, r in pairs], scorer.compare)
        scorer.let_go()
        kept = [(p, prompt_name(g)) for p, (g, _, _) in zip(found, pairs, strict=True) if p is not None]
        return preference_accuracy(probabilities=[p for p, _ in kept], clusters=[name for _, name in kept], seed=seed)
    scored = [g.with_scores(scorer.name, s) for g, s in zip(groups, divided(groups, scorer.score), strict=True)]
    scorer.let_go()
    margins, clusters = pair_margins(scored, scorer.name)
    return preference_accuracy(margins, clusters=clusters, seed=seed)
