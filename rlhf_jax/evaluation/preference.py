"""How well a reward or preference model predicts held-out preferences, and whether its probabilities can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.calibration import Predictions, ReliabilityBin, TieRule, predictions_of
from rlhf_jax.evaluation.measures import PAIR_MEASURES, PairMeasure
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.statistics import Coverage, Estimate, by_cluster, resampled_estimate


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """A preference model on held-out pairs.

    Attributes:
      estimates: name of a measure of `PAIR_MEASURES` -> its value.
      reliability: the bins of the calibration error.
      pairs, ties: number of pairs, and of those with equal scores.
      tie_rule: "half" counts a tie one half, "strict" counts it wrong.
    """

    estimates: Mapping[str, Estimate]
    reliability: tuple[ReliabilityBin, ...]
    pairs: int
    ties: int
    tie_rule: str = "half"

    def to_json(self) -> dict[str, Any]:
        return {**{name: estimate.to_json() for name, estimate in self.estimates.items()},
                "reliability": [b.to_json() for b in self.reliability], "pairs": self.pairs, "ties": self.ties,
                "tie_rule": self.tie_rule}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PreferenceReport:
        estimates = {name: Estimate.from_json(row[name]) for name in PAIR_MEASURES}
        bins = tuple(ReliabilityBin.from_json(b) for b in row["reliability"])
        return PreferenceReport(estimates, bins, row["pairs"], row["ties"], row["tie_rule"])


@dataclasses.dataclass(frozen=True)
class ScorerReport:
    """What evaluating a scorer on held-out preference rows came to.

    Attributes:
      preference: accuracy, likelihood and calibration over the pairs that were judged.
      pairs_read: judged or not.
      failures: reason -> responses or comparisons that got no verdict.
      funnel: of the rows, those of which no pair was judged among the dropped; None where it was not kept.
      benchmark: the numbers of the benchmark that the rows are of; the accuracy of each subset of plain rows.
      incomplete: number -> how many of its rows were judged, where some were not.
    """

    preference: PreferenceReport
    pairs_read: int | None = None
    failures: Mapping[str, int] = dataclasses.field(default_factory=dict)
    funnel: Funnel | None = None
    benchmark: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    incomplete: Mapping[str, Coverage] = dataclasses.field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """Every number as JSON; with `rows`, how many were judged of how many, where some were not."""
        return {name: {**estimate.to_json(), **(
            {"rows": self.incomplete[name]._asdict()} if name in self.incomplete else {})}
            for name, estimate in {**self.preference.estimates, **self.benchmark}.items()}

    def to_json(self) -> dict[str, Any]:
        found = self.numbers()
        numbers = {name: found.pop(name) for name in self.benchmark}
        return {**self.preference.to_json(), **found, "pairs_read": self.pairs_read, "failures": dict(self.failures),
                "funnel": None if self.funnel is None else self.funnel.to_json(),
                **({"benchmark": numbers} if numbers else {})}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> ScorerReport:
        funnel, benchmark = row.get("funnel"), row.get("benchmark", {})
        numbers = {name: row[name] for name in PAIR_MEASURES} | benchmark
        return ScorerReport(PreferenceReport.from_json(row), row.get("pairs_read"), row.get("failures") or {},
                            Funnel.from_json(funnel) if funnel else None,
                            {name: Estimate.from_json(number) for name, number in benchmark.items()},
                            {name: Coverage(**number["rows"]) for name, number in numbers.items() if "rows" in number})


def pair_margins(groups: Sequence[PromptGroup], scorer: str) -> tuple[np.ndarray, list[str]]:
    """Score of chosen minus score of rejected for every pair of the groups, and the prompt each pair belongs to.

    Pairs of which a response has no score are left out; [pairs] float64 and [pairs] `prompt_name`s.
    """
    found = [(c.scores[scorer] - r.scores[scorer], prompt_name(group))
             for group in groups for c, r in ((group.responses[i], group.responses[j]) for i, j in group.pairs)
             if scorer in c.scores and scorer in r.scores]
    return np.array([margin for margin, _ in found], np.float64), [name for _, name in found]


def preference_accuracy(margins: ArrayLike | None = None, *, probabilities: ArrayLike | None = None,
                        clusters: Sequence[Hashable] | None = None, tie_rule: TieRule = "half", bins: int = 15,
                        seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> PreferenceReport:
    """Accuracy, likelihood and calibration on pairs whose first response is the preferred one.

    Args:
      margins: [pairs] score of chosen minus score of rejected, on the scale of training: P(chosen preferred) is its
        sigmoid. Accuracy stands any rescaling of the scores, likelihood and calibration do not.
      probabilities: [pairs] P(chosen preferred), of a pairwise model: the mean over both orders. In place of margins.
      clusters: [pairs] which prompt each pair belongs to, for the intervals; None makes each pair its own unit.
      tie_rule: what an equal score counts for `accuracy`. Calibration always counts it one half.
      bins: number of equal-width bins of P(predicted winner) in [0.5, 1].

    Raises:
      ValueError: not exactly one of margins and probabilities is given, there are no pairs, or a value is not finite.
    """
    found = predictions_of(margins, probabilities, tie_rule, bins)
    estimates = {name: _estimate(measure, found, clusters, seed, confidence, resamples)
                 for name, measure in PAIR_MEASURES.items()}
    return PreferenceReport(estimates, found.reliability, len(found.p), int(found.ties.sum()), tie_rule)


def _estimate(measure: PairMeasure, predictions: Predictions, clusters: Sequence[Hashable] | None, seed: int,
              confidence: float, resamples: int) -> Estimate:
    found = measure.function(predictions)
    return resampled_estimate(by_cluster(found.columns, clusters), lambda sums, units: found.statistic(sums), seed,
                              confidence, resamples, outcomes=found.share)
