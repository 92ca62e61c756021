"""Methods compared at equal divergence from the start: a method that moved further is not therefore better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.policy import PolicySummary
from rlhf_jax.evaluation.statistics import Estimate, normal_interval

KL = "kl_k1"
"""The measure of divergence: unbiased."""


@dataclasses.dataclass(frozen=True)
class Frontier:
    """What reward a method has at which divergence from the start.

    Attributes:
      kl: [P] nats per answer, ascending; the first is the start's, 0.
      reward: [P] of the policies that were measured there.
      kl_error, reward_error: [P] their standard errors over prompts.

    Between two policies the reward is linear in the square root of the divergence, along which curves of reward are
    nearly straight (Gao et al., arXiv 2210.10760, section 3); of a method with one policy that is the way there from
    the start, which nobody measured.
    """

    kl: np.ndarray
    reward: np.ndarray
    kl_error: np.ndarray
    reward_error: np.ndarray

    @property
    def furthest(self) -> float:
        """The largest divergence that was measured, in nats per answer."""
        return float(self.kl[-1])

    def at(self, kl: float) -> tuple[float, float]:
        """The reward at a divergence, and its standard error over prompts (of policies taken as independent).

        Raises:
          ValueError: no policy went that far.
        """
        if not 0 <= kl <= self.furthest:
            raise ValueError(f"the reward at {kl:.3g} nats is not known: the furthest policy is at "
                             f"{self.furthest:.3g}")
        place = np.sqrt(self.kl)
        right = min(max(int(np.searchsorted(self.kl, kl)), 1), len(self.kl) - 1)
        ends = slice(right - 1, right + 1)
        (left_x, right_x), (left_y, right_y) = place[ends], self.reward[ends]
        if right_x == left_x:
            return float(right_y), float(self.reward_error[right])
        share = (math.sqrt(kl) - left_x) / (right_x - left_x)
        weights = np.array([1 - share, share])
        slope = (right_y - left_y) / (right_x - left_x)
        moved = self.kl_error[ends] / (2 * np.where(place[ends] > 0, place[ends], np.inf))
        error = np.sqrt(np.sum(weights**2 * (self.reward_error[ends] ** 2 + (slope * moved) ** 2)))
        return float(weights @ np.array([left_y, right_y])), float(error)


def frontier(policies: Sequence[PolicySummary], families: Sequence[str], measure: str) -> Frontier | None:
    """Of the policies of these families, from the start (round 0) on; None where one or the other was not measured."""
    start = next((policy for policy in policies if policy.round == 0 and policy.get(measure) is not None), None)
    found = [(kl, reward) for policy in policies if policy.family in families and policy.round > 0
             if (kl := policy.get(KL)) is not None and (reward := policy.get(measure)) is not None]
    if start is None or not found:
        return None
    points = [(0.0, start.estimates[measure].value, 0.0, start.estimates[measure].standard_error)]
    points += sorted((max(kl.value, 0.0), reward.value, kl.standard_error, reward.standard_error)
                     for kl, reward in found)
    return Frontier(*(np.nan_to_num(np.array(column, np.float64)) for column in zip(*points, strict=True)))


@dataclasses.dataclass(frozen=True)
class AtEqualKl:
    """Two methods at one divergence: that of the one that moved less.

    Attributes:
      kl: nats per answer.
      ours, theirs: rewards there.
      error: standard error of their difference over prompts.
    """

    kl: float
    ours: float
    theirs: float
    error: float

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def interval(self) -> tuple[float, float]:
        """Normal 95 % interval of the difference over prompts."""
        return normal_interval(self.difference, self.error)


def at_equal_kl(ours: Frontier, theirs: Frontier) -> AtEqualKl:
    """Both frontiers read at the smaller of their furthest divergences."""
    kl = min(ours.furthest, theirs.furthest)
    (a, a_error), (b, b_error) = ours.at(kl), theirs.at(kl)
    return AtEqualKl(kl, a, b, math.hypot(a_error, b_error))


@dataclasses.dataclass(frozen=True)
class EqualKl:
    """Several runs of two methods, each compared at equal divergence. Estimates are over seeds.

    Attributes:
      ours, against: the methods' families, or other names.
      measure: of reward.
      kl: where they were compared.
      values: the mean rewards there. difference: ours minus theirs, within each seed.
    """

    ours: str
    against: str
    measure: str
    kl: Estimate
    values: tuple[Estimate, Estimate]
    difference: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"ours": self.ours, "against": self.against, "measure": self.measure, "kl": self.kl.to_json(),
                "values": [value.to_json() for value in self.values], "difference": self.difference.to_json()}
