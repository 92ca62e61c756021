"""How well a reward or preference model predicts held-out preferences, and whether its probabilities can be trusted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.statistics import Estimate, by_cluster, resampled_estimate

SMALLEST_PROBABILITY = 1e-12
"""A given probability of 0 or 1 is moved this far inwards, so that a sure mistake costs 27.6 nats and not infinity."""


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose predicted winner got a probability in [low, high); the last bin includes 1.

    Attributes:
      confidence, accuracy: means over the bin's pairs; nan in an empty bin.
      count: pairs in the bin.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        row = dataclasses.asdict(self)
        return {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in row.items()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> ReliabilityBin:
        confidence, accuracy = (math.nan if row[k] is None else float(row[k]) for k in ("confidence", "accuracy"))
        return ReliabilityBin(row["low"], row["high"], confidence, accuracy, row["count"])


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """A preference model on held-out pairs.

    Attributes:
      accuracy: share of pairs where the chosen response gets the higher score, ties by `tie_rule`.
      nll: mean of -log P(chosen preferred), in nats a pair; log 2 is the value of an even guess.
      brier: mean of (1 - P(chosen preferred))^2; 0.25 is the value of an even guess.
      ece: expected calibration error, the count-weighted mean over bins of |accuracy - confidence|. Sampling noise
        alone makes it positive, so its interval lies above that of a larger data set.
      reliability: the bins it is computed from.
      pairs, ties: number of pairs, and of those with equal scores.
      tie_rule: "half" counts a tie one half, "strict" counts it wrong.
    """

    accuracy: Estimate
    nll: Estimate
    brier: Estimate
    ece: Estimate
    reliability: tuple[ReliabilityBin, ...]
    pairs: int
    ties: int
    tie_rule: str = "half"

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(self, name).to_json() for name in ("accuracy", "nll", "brier", "ece")}
        return {**row, "reliability": [b.to_json() for b in self.reliability], "pairs": self.pairs, "ties": self.ties,
                "tie_rule": self.tie_rule}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PreferenceReport:
        accuracy, nll, brier, ece = (Estimate.from_json(row[name]) for name in ("accuracy", "nll", "brier", "ece"))
        bins = tuple(ReliabilityBin.from_json(b) for b in row["reliability"])
        return PreferenceReport(accuracy, nll, brier, ece, bins, row["pairs"], row["ties"], row["tie_rule"])


def pair_margins(groups: Sequence[PromptGroup], scorer: str) -> tuple[np.ndarray, list[str]]:
    """Score of chosen minus score of rejected for every pair of the groups, and the prompt each pair belongs to.

    Pairs of which a response has no score are left out; [pairs] float64 and [pairs] `prompt_name`s.
    """
    found = [(c.scores[scorer] - r.scores[scorer], prompt_name(group))
             for group in groups for c, r in ((group.responses[i], group.responses[j]) for i, j in group.pairs)
             if scorer in c.scores and scorer in r.scores]
    return np.array([margin for margin, _ in found], np.float64), [name for _, name in found]


def preference_accuracy(margins: ArrayLike | None = None, *, probabilities: ArrayLike | None = None,
                        clusters: Sequence[Hashable] | None = None, tie_rule: Literal["half", "strict"] = "half",
                        bins: int = 15, seed: int = 0, confidence: float = 0.95,
                        resamples: int = 2000) -> PreferenceReport:
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

    Source: C. Guo et al., "On calibration of modern neural networks" (2017), for expected calibration error.
    """
    p, log_p, ties = _probabilities(margins, probabilities)
    winner = np.maximum(p, 1.0 - p)
    half = np.where(ties, 0.5, p > 0.5)
    accurate = half if tie_rule == "half" else (half == 1.0).astype(float)
    place = np.minimum(((winner - 0.5) * (2 * bins)).astype(int), bins - 1)
    in_bin = np.eye(bins)[place]
    columns = np.column_stack([np.ones_like(p), accurate, -log_p, (1.0 - p) ** 2, in_bin,
                               in_bin * winner[:, None], in_bin * half[:, None]])
    totals = by_cluster(columns, clusters)

    def calibration_error(sums: np.ndarray, units: int) -> float:
        confidences, hits = sums[4 + bins :].reshape(2, bins)
        return float(np.abs(hits - confidences).sum() / sums[0])

    def mean_of(column: int) -> Estimate:
        return resampled_estimate(totals[:, [0, column]], lambda sums, units: sums[1] / sums[0], seed, confidence,
                                  resamples)

    ece = resampled_estimate(totals, calibration_error, seed, confidence, resamples)
    return PreferenceReport(mean_of(1), mean_of(2), mean_of(3), ece, _reliability(columns[:, 4:].sum(axis=0), bins),
                            len(p), int(ties.sum()), tie_rule)


def _probabilities(margins: ArrayLike | None, probabilities: ArrayLike | None
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(chosen preferred), its logarithm, and where both responses got the same score; [pairs] each."""
    if (margins is None) == (probabilities is None):
        raise ValueError("give either margins or probabilities, and not both")
    values = np.asarray(margins if margins is not None else probabilities, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"need a list of at least one finite number, got shape {values.shape} with "
                         f"{int((~np.isfinite(values)).sum())} not finite; leave out pairs that could not be scored")
    if margins is not None:
        return scipy.special.expit(values), scipy.special.log_expit(values), values == 0.0
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(f"probabilities lie in [0, 1], got {values.min()} to {values.max()}; are these margins?")
    return values, np.log(np.maximum(values, SMALLEST_PROBABILITY)), values == 0.5


def _reliability(sums: np.ndarray, bins: int) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0.5, 1.0, bins + 1)
    counts, confidences, hits = sums.reshape(3, bins)
    return tuple(
        ReliabilityBin(float(low), float(high), *((float(c / n), float(h / n)) if n else (math.nan, math.nan)), int(n))
        for low, high, n, c, h in zip(edges[:-1], edges[1:], counts, confidences, hits, strict=True))
