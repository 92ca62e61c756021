"""Judges of pairs held against each other and against people: agreement and kappa; and what a judge gives a place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.evaluation.statistics import Estimate, by_cluster, mean_estimate, resampled_estimate


def kappa_of(sums: np.ndarray) -> float:
    """Cohen's kappa from [pairs, agreements, ties of the first, ties of the second]; nan where all are ties.

    Which of a pair's two answers is called the first is arbitrary, so every pair counts in both ways round: chance
    agreement is t1 t2 + (1 - t1)(1 - t2) / 2, with t the share of ties. Without ties kappa is 2 x agreement - 1.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20
    (1960).
    """
    count, agreed, ties, other_ties = sums
    t1, t2 = ties / count, other_ties / count
    chance = t1 * t2 + (1 - t1) * (1 - t2) / 2
    return float("nan") if chance == 1 else float((agreed / count - chance) / (1 - chance))


def agreement(first: ArrayLike, second: ArrayLike, clusters: Sequence[Hashable] | None = None, seed: int = 0
              ) -> dict[str, Estimate]:
    """Share of pairs on which two judges say the same, and their kappa, with intervals over clusters (prompts).

    Args:
      first, second: [pairs] each judge's verdict: 1 for one answer, 0 for the other, a half for a tie.

    Raises:
      ValueError: the shapes differ, there are no pairs, a verdict is another number, or all verdicts are ties.
    """
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    if a.shape != b.shape or not len(a):
        raise ValueError(f"two judges are compared on the same pairs, at least one; got {a.shape} and {b.shape}")
    if odd := sorted({*a.tolist(), *b.tolist()} - {0.0, 0.5, 1.0}):
        raise ValueError(f"a verdict is {odd[0]}; it must be 1, 0, or 0.5 for a tie")
    if (a == 0.5).all() and (b == 0.5).all():
        raise ValueError("both judges call every pair a tie; agreement beyond chance has no meaning there")
    totals = by_cluster(np.column_stack([np.ones_like(a), a == b, a == 0.5, b == 0.5]), clusters)
    return {"agreement": resampled_estimate(totals, lambda sums, units: sums[1] / sums[0], seed),
            "kappa": resampled_estimate(totals, lambda sums, units: kappa_of(sums), seed)}


def position_bias(orders: ArrayLike, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> dict[str, Estimate]:
    """What a judge gives the place that an answer stands in, with intervals over clusters (prompts).

    Args:
      orders: [pairs, 2] P(one answer is better) where it is shown first, and where it is shown second.

    Returns:
      "position/first": the mean probability that the answer shown first is called better; a half without bias.
      "position/inconsistent": the share of pairs in which turning the order turns the verdict.

    Raises:
      ValueError: there are no pairs, or a probability is not finite.
    """
    p = np.asarray(orders, np.float64).reshape(-1, 2)
    first = (p[:, 0] + 1 - p[:, 1]) / 2
    inconsistent = np.sign(p[:, 0] - 0.5) != np.sign(p[:, 1] - 0.5)
    return {"position/first": mean_estimate(first, seed, clusters=clusters),
            "position/inconsistent": mean_estimate(inconsistent, seed, clusters=clusters)}
