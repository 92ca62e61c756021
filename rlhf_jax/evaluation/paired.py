"""Two scorers, judges or policies on the same rows: by how much one is ahead, and how likely chance is to do that."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from rlhf_jax.evaluation.statistics import Estimate, by_cluster, paired_difference

FLIPS = 10_000
"""Draws of signs where not all of them can be counted."""
_AT_ONCE = 2 ** 22  # signs held at once


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """The first against the second.

    Attributes:
      difference: mean of first - second, with an interval over clusters (prompts).
      p_value: two-sided, of no difference (`sign_flip_p_value`).
      adjusted: the same, raised for how many comparisons were made at once (`holm`).
    """

    difference: Estimate
    p_value: float
    adjusted: float

    def to_json(self) -> dict[str, Any]:
        return {"difference": self.difference.to_json(), "p_value": self.p_value, "adjusted": self.adjusted}


def sign_flip_p_value(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p value of differences that are as likely to be turned round as not; [units] to a number in (0, 1].

    Where all of them are 0 or of one size, as between two accuracies with one row a prompt, this is McNemar's exact
    test, the binomial test of who won the rows on which they differ. Otherwise it is the share of `FLIPS` draws of
    signs whose sum is as far from zero (the draw that was seen counts as one of them).

    Raises:
      ValueError: there are no differences, or one is not finite.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947); R. A. Fisher, "The Design of Experiments" (1935), section 21.
    """
    found = np.asarray(differences, np.float64).ravel()
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"a comparison needs differences that are numbers, at least one; got {found}")
    moved = found[found != 0]
    if not len(moved):
        return 1.0
    if np.ptp(np.abs(moved)) <= 1e-12 * np.abs(moved).max():
        return float(scipy.stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue)
    rng = np.random.default_rng(seed)
    seen, far, left = abs(moved.sum()) - 1e-9 * np.abs(moved).sum(), 1, FLIPS
    while left:
        draws = min(left, max(1, _AT_ONCE // len(moved)))
        signs = rng.integers(0, 2, (draws, len(moved)), dtype=np.int8)
        far += int((np.abs((2.0 * signs - 1.0) @ moved) >= seen).sum())
        left -= draws
    return far / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of comparisons made at once, raised so that one of them all is called wrongly at the stated rate.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian J. of Statistics 6 (1979).
    """
    raised, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        raised[place] = highest
    return raised


def compare_all(values: Mapping[str, ArrayLike], clusters: Sequence[Hashable], seed: int = 0
                ) -> dict[tuple[str, str], PairedComparison]:
    """Every two of some scorers, judges or policies on the same rows, in the order they are given.

    Args:
      values: name -> [rows], what each made of a row: 1 where it was right, 0 where not, or any score.
      clusters: [rows], which prompt each row belongs to; rows of one are one unit.

    Raises:
      ValueError: they have different numbers of rows, none, or a value is not finite.
    """
    names = list(values)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1:]]
    gaps = {}
    for a, b in pairs:
        first, second = (np.asarray(values[name], np.float64) for name in (a, b))
        gaps[a, b] = paired_difference(first, second, seed, clusters=clusters), sign_flip_p_value(
            by_cluster((first - second)[:, None], clusters), seed)
    adjusted = holm([p for _, p in gaps.values()])
    return {pair: PairedComparison(*gaps[pair], raised) for pair, raised in zip(pairs, adjusted, strict=True)}
