"""Estimates with intervals. The unit is the prompt: its samples, and all rows that ask it, are resampled together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
      value: the point estimate.
      standard_error: of `value`; nan where one unit alone was measured.
      low, high: ends of the confidence interval; nan where one unit alone was measured.
      count: independent units behind it: prompts, or seeds.
    """

    value: float
    standard_error: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        digits = 2 if abs(self.value) < 100 else 1
        interval = "" if math.isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{interval}"

    def to_json(self) -> dict[str, float | int | None]:
        """Plain numbers; nan becomes null, which JSON can hold."""
        row = dataclasses.asdict(self)
        return {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in row.items()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Estimate:
        value, error, low, high = (
            math.nan if row[name] is None else float(row[name]) for name in ("value", "standard_error", "low", "high"))
        return Estimate(value, error, low, high, int(row["count"]))


class Coverage(NamedTuple):
    """Of how many rows a number is. judged: rows of which no pair failed. of: all that it should be of."""

    judged: int
    of: int


FEW_UNITS = 5
"""Below this many units no resample of them reaches as far as the interval must."""
FEW_OUTCOMES = 100
"""Below this many outcomes of 0 or 1 the interval of their share is Wilson's."""


def normal_interval(value: float, standard_error: float, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end of a normal interval; nan where the standard error is."""
    reach = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * standard_error
    return value - reach, value + reach


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end for the share of `count` independent outcomes: in [0, 1], and apart where all are equal.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))
    centre, reach = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((centre + sign * reach) / (1 + z**2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def mean_estimate(values: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000,
                  clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean with a bootstrap interval over prompts; [rows] to Estimate.

    Args:
      values: [rows], one number per row of prompts: the mean over its samples.
      clusters: [rows], which prompt each row asks; rows of one prompt are one unit. None makes each row its own.
      seed: of the resampling.
      confidence: probability the interval aims at.
      resamples: number of bootstrap resamples.

    Raises:
      ValueError: there are no values, or one is not finite.
    """
    values = _finite(values)
    totals = by_cluster(np.column_stack([np.ones_like(values), values]), clusters)
    return resampled_estimate(totals, lambda sums, units: sums[1] / sums[0], seed, confidence, resamples)


def by_cluster(columns: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """[clusters, M]: the sums of the rows [rows, M] of each cluster; the rows themselves where `clusters` is None.

    Raises:
      ValueError: there is not one cluster id per row.
    """
    if clusters is None:
        return columns
    if len(clusters) != len(columns):
        raise ValueError(f"{len(columns)} values have {len(clusters)} cluster ids; give one for each")
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros_like(columns, shape=(len(number), columns.shape[1]))  # in the same memory order
    np.add.at(sums, [number[name] for name in clusters], columns)
    return sums


def resampled_estimate(totals: ArrayLike, statistic: Callable[[np.ndarray, int], float], seed: int = 0,
                       confidence: float = 0.95, resamples: int = 2000, *, outcomes: bool = False) -> Estimate:
    """A function of sums over units with a bootstrap interval over units, widened for few of them.

    The interval lies between percentiles of the resamples, further out than `confidence` says by what Student's t
    exceeds the normal distribution and by what a resample varies less than a sample. (Plain percentiles of 8 to 16
    units cover the truth 84 to 92 times in 100 where they should 95 times, and BCa's hardly more often.) Of fewer than
    `FEW_UNITS` units it is Student's t interval, which may leave the range of the data; none if they are all equal.

    Args:
      totals: [units, M], what each unit (prompt) adds to M sums.
      statistic: (sums [M], number of units) to the number; a ratio of two sums, for example.
      outcomes: the number is a share of what went right. Where each unit has one outcome, 0 or 1, and they are few or
        all alike, it has Wilson's interval.

    Raises:
      ValueError: there are no units, or a number is not finite.

    Source: T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015), the
    expanded percentile interval.
    """
    totals = _finite(totals)
    count = len(totals)
    value = float(statistic(totals.sum(axis=0), count))
    if count == 1:
        return Estimate(value, math.nan, math.nan, math.nan, 1)
    equal = bool((totals == totals[0]).all())
    if outcomes and _is_share(totals, value) and (equal or count < FEW_OUTCOMES):
        low, high = wilson_interval(value, count, confidence)
        return Estimate(value, math.sqrt(value * (1 - value) / (count - 1)), low, high, count)
    if equal:
        return Estimate(value, 0.0, value, value, count) if count >= FEW_UNITS else Estimate(
            value, 0.0, math.nan, math.nan, count)
    # A resample is how often each unit was drawn; the sums of those rows follow without gathering them.
    rng = np.random.default_rng(seed)
    times = (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(resamples))
    found = np.array([statistic(drawn @ totals, count) for drawn in times])
    narrow = math.sqrt(count / (count - 1))
    error = narrow * float(found.std(ddof=1))
    reach = float(scipy.stats.t.ppf((1.0 + confidence) / 2.0, count - 1))
    if count < FEW_UNITS:
        return Estimate(value, error, value - reach * error, value + reach * error, count)
    tail = float(scipy.stats.norm.sf(narrow * reach))
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return Estimate(value, error, float(low), float(high), count)


def _is_share(totals: np.ndarray, value: float) -> bool:
    """Whether a value is the share of ones among outcomes, of which each unit has one."""
    return bool(totals.shape[1] == 2 and (totals[:, 0] == 1).all() and np.isin(totals[:, 1], (0.0, 1.0)).all()
                and math.isclose(value, totals[:, 1].mean()))


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int = 0, confidence: float = 0.95,
                      resamples: int = 2000, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of a - b over the same rows in the same order, as `mean_estimate`; [rows] and [rows] to Estimate.

    Pairing removes what is common to a prompt, so the interval is tighter than that of two separate means.

    Raises:
      ValueError: the shapes differ, there are no values, or one is not finite.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same prompts on both sides, got {a.shape} and {b.shape}")
    return mean_estimate(a - b, seed, confidence, resamples, clusters)


def across_seeds(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over independent runs, its standard error and Student's t interval; [seeds] to Estimate.

    With one seed there is no standard error and no interval (nan).

    Raises:
      ValueError: there are no values, or one is not finite.
    """
    values = _finite(values)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    error = float(scipy.stats.sem(values))
    reach = error * float(scipy.stats.t.ppf((1.0 + confidence) / 2.0, count - 1))
    return Estimate(mean, error, mean - reach, mean + reach, count)


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("an estimate needs at least one value, got none")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are nan or infinite; "
                         "leave out what was not measured instead of passing a placeholder")
    return array
