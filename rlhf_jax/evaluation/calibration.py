"""Predictions of a preference model on labelled pairs, and the numbers that follow from sums over the pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

SMALLEST_PROBABILITY = 1e-12
"""A given probability of 0 or 1 is moved this far inwards, so that a sure mistake costs 27.6 nats and not infinity."""
TieRule = Literal["half", "strict"]


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
class Predictions:
    """What a preference model says of pairs whose first response is the preferred one.

    Attributes:
      p, log_p: [pairs] P(chosen preferred) and its logarithm.
      ties: [pairs] where both responses got the same score.
      tie_rule: "half" counts a tie one half in the accuracy, "strict" counts it wrong.
      bins: number of equal-width bins of P(predicted winner) in [0.5, 1].
    """

    p: np.ndarray
    log_p: np.ndarray
    ties: np.ndarray
    tie_rule: TieRule = "half"
    bins: int = 15

    @cached_property
    def hits(self) -> np.ndarray:
        """[pairs] 1 where the chosen response is preferred, a half for a tie."""
        return np.where(self.ties, 0.5, self.p > 0.5)

    @cached_property
    def by_bin(self) -> np.ndarray:
        """[pairs, 3 bins]: what each pair adds to counts, confidences and hits of the bins."""
        winner = np.maximum(self.p, 1.0 - self.p)
        place = np.minimum(((winner - 0.5) * (2 * self.bins)).astype(int), self.bins - 1)
        in_bin = np.eye(self.bins)[place]
        return np.column_stack([in_bin, in_bin * winner[:, None], in_bin * self.hits[:, None]])

    @property
    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """Accuracy against confidence, bin by bin."""
        edges = np.linspace(0.5, 1.0, self.bins + 1)
        counts, confidences, hits = self.by_bin.sum(axis=0).reshape(3, self.bins)
        return tuple(ReliabilityBin(
            float(low), float(high), *((float(c / n), float(h / n)) if n else (math.nan, math.nan)), int(n))
            for low, high, n, c, h in zip(edges[:-1], edges[1:], counts, confidences, hits, strict=True))


class Sums(NamedTuple):
    """What each pair adds to M sums, [pairs, M], and the number that follows from the totals [M].

    share: the number is the share of what went right.
    """

    columns: np.ndarray
    statistic: Callable[[np.ndarray], float]
    share: bool = False


def accuracy(predictions: Predictions) -> Sums:
    """Share of pairs where the chosen response gets the higher score, ties by the tie rule."""
    strict = predictions.tie_rule == "strict"
    return _mean((predictions.hits == 1.0).astype(float) if strict else predictions.hits)._replace(share=True)


def negative_log_likelihood(predictions: Predictions) -> Sums:
    """Mean of -log P(chosen preferred), in nats per pair; log 2 is the value of an even guess."""
    return _mean(-predictions.log_p)


def brier_score(predictions: Predictions) -> Sums:
    """Mean of (1 - P(chosen preferred))^2; 0.25 is the value of an even guess."""
    return _mean((1.0 - predictions.p) ** 2)


def expected_calibration_error(predictions: Predictions) -> Sums:
    """The count-weighted mean over bins of |accuracy - confidence|, a tie counting one half.

    Source: C. Guo et al., "On calibration of modern neural networks" (2017).
    """
    def error(sums: np.ndarray) -> float:
        counts, confidences, hits = sums.reshape(3, predictions.bins)
        return float(np.abs(hits - confidences).sum() / counts.sum())

    return Sums(predictions.by_bin, error)


def _mean(values: np.ndarray) -> Sums:
    columns = np.stack([np.ones_like(values), values]).T  # each column lies together, so its sum is pairwise
    return Sums(columns, lambda sums: float(sums[1] / sums[0]))


def predictions_of(margins: ArrayLike | None, probabilities: ArrayLike | None, tie_rule: TieRule = "half",
                   bins: int = 15) -> Predictions:
    """From margins (P is their sigmoid) or from probabilities.

    Raises:
      ValueError: not exactly one of the two is given, there are no pairs, or a value is not finite.
    """
    if (margins is None) == (probabilities is None):
        raise ValueError("give either margins or probabilities, and not both")
    values = np.asarray(margins if margins is not None else probabilities, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"need a list of at least one finite number, got shape {values.shape} with "
                         f"{int((~np.isfinite(values)).sum())} not finite; leave out pairs that could not be scored")
    if margins is not None:
        return Predictions(scipy.special.expit(values), scipy.special.log_expit(values), values == 0.0, tie_rule, bins)
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(f"probabilities lie in [0, 1], got {values.min()} to {values.max()}; are these margins?")
    return Predictions(values, np.log(np.maximum(values, SMALLEST_PROBABILITY)), values == 0.5, tie_rule, bins)
