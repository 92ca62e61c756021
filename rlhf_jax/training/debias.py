"""Freeing objectives of verbosity: how much of one objective is taken off the others (ArmoRM, arXiv 2406.12845)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

THRESHOLD = 0.03
"""Rank correlation that counts as none: the default of ArmoRM's script."""
ARMORM_GRID = (0, .01, .025, .05, .075, .1, .125, .15, .2, .25, .3, .35, .4, .45, .5, .55, .6, .65, .7, .75, .8, .85,
               .9, .95)
"""The penalties ArmoRM tries; an objective for which none is enough keeps 1."""
_STEPS, _LARGEST = 40, 2.0**20


class Debiased(NamedTuple):
    """penalties: [K], how much of the objective is taken off each. before, after: [K] rank correlations with it."""

    penalties: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def missed(self, threshold: float, at: int) -> list[int]:
        """Objectives that still follow objective `at`; none where `after` is within the threshold."""
        return [k for k, rho in enumerate(self.after) if k != at and not abs(rho) <= threshold]


class Spearman:
    """Rank correlation with fixed values [N]; NaN where either side is constant. scipy.stats.spearmanr, faster."""

    def __init__(self, values: np.ndarray):
        self._ranks = _centred(rankdata(values))

    def __call__(self, other: np.ndarray) -> float:
        ranks = _centred(rankdata(other))
        size = np.sqrt((self._ranks @ self._ranks) * (ranks @ ranks))
        return float(self._ranks @ ranks / size) if size else float("nan")


def _centred(ranks: np.ndarray) -> np.ndarray:
    return ranks - ranks.mean()


def find_penalties(rewards: np.ndarray, at: int, threshold: float = THRESHOLD, grid: Sequence[float] | None = None
                   ) -> Debiased:
    """The smallest l_k for which r_k - l_k r_at is rank-correlated with r_at by at most `threshold`.

    Args:
      rewards: [N, K] of a reference set.
      at: the objective that is taken off the others, say verbosity.
      grid: penalties to try in this order, as ArmoRM has them, 1 where none is enough; a negative correlation is left
        alone. None: the correlation falls with l, so bisection finds it to the last digits; a negative one is lifted by
        a negative l.

    Raises:
      ValueError: if objective `at` is the same in every row, so that nothing can follow it.
    """
    follows = Spearman(rewards[:, at])
    if np.isnan(follows(rewards[:, at])):
        raise ValueError(f"objective {at} has one value in all {len(rewards)} rows of the reference set, so nothing "
                         "can be freed of it")
    penalties, before, after = (np.zeros(rewards.shape[1]) for _ in range(3))
    for k in range(rewards.shape[1]):
        before[k] = follows(rewards[:, k])
        penalties[k] = 1.0 if k == at else (
            _bisected(follows, rewards[:, k], rewards[:, at], threshold) if grid is None else
            _first(follows, rewards[:, k], rewards[:, at], threshold, grid))
        after[k] = follows(rewards[:, k] - penalties[k] * rewards[:, at])
    return Debiased(penalties, before, after)


def _first(follows: Spearman, reward: np.ndarray, bias: np.ndarray, threshold: float, grid: Sequence[float]) -> float:
    return next((float(l) for l in grid if follows(reward - l * bias) <= threshold), 1.0)


def _bisected(follows: Spearman, reward: np.ndarray, bias: np.ndarray, threshold: float) -> float:
    rho = follows(reward)
    if not abs(rho) > threshold:
        return 0.0  # NaN: a constant follows nothing
    sign = np.sign(rho)

    def enough(size: float) -> bool:
        return bool(sign * follows(reward - sign * size * bias) <= threshold)

    high = float(np.std(reward) / np.std(bias))
    while not enough(high) and high < _LARGEST * np.std(reward) / np.std(bias):
        high *= 2.0
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(sign * high)


def reward_transform(penalties: np.ndarray, at: int) -> np.ndarray:
    """[K, K] M of r' = r M: the identity with M[at, k] = -l_k, and M[at, at] = 0, since nothing of it is left."""
    transform = np.eye(len(penalties))
    transform[at] -= penalties
    transform[at, at] = 0.0
    return transform
