"""Looking at a mean after every run, and stopping once its sign is decided, at an error rate that holds over all looks.

Repeated two-sided t tests at one nominal level (S. Pocock, "Group sequential methods in the design and analysis of
clinical trials", Biometrika 64, 1977; the t form: Jennison and Turnbull, "Group Sequential Methods", 2000, section
11.5). Under normal differences of mean zero the p values of all looks depend on no unknown number, so that the level
that errs over all looks at a given rate follows by simulation. Testing at that rate itself after each run errs several
times as often.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.stats

FIRST_LOOK = 2
"""Runs at the first look: one has no spread."""
SIMULATED = 100_000
Verdict = Literal["above", "below", "open"]


def p_values(differences: np.ndarray) -> np.ndarray:
    """Two-sided p values of a t test of mean zero after 2, 3 ... K runs; [..., K] to [..., K - 1]."""
    counts = np.arange(1, differences.shape[-1] + 1)
    mean = np.cumsum(differences, -1) / counts
    spread = np.cumsum(differences**2, -1) - counts * mean**2
    counts, mean, spread = counts[1:], mean[..., 1:], np.maximum(spread[..., 1:], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) * np.sqrt(counts * (counts - 1) / spread)
    return 2 * scipy.stats.t.sf(np.where(np.isnan(t), 0.0, t), counts - 1)  # nan: all differences are zero


@functools.cache
def nominal_level(looks: int, error_rate: float) -> float:
    """The level of each test, of which `looks` after 2, 3 ... runs together err at `error_rate`."""
    smallest = np.full(SIMULATED, np.inf)
    rng = np.random.default_rng(0)
    for start in range(0, SIMULATED, 10_000):
        drawn = rng.standard_normal((10_000, looks + 1))
        smallest[start : start + 10_000] = p_values(drawn).min(-1)
    return float(np.quantile(smallest, error_rate))


def verdict(differences: Sequence[float], max_runs: int, error_rate: float) -> Verdict:
    """What the runs so far say of the sign of the mean difference, where at most `max_runs` are made.

    Raises:
      ValueError: there are more runs than that, or a difference is not finite.
    """
    if len(differences) > max_runs:
        raise ValueError(f"{len(differences)} differences of at most {max_runs} runs")
    if not all(map(math.isfinite, differences)):
        raise ValueError("a difference is not finite; a run that was not measured decides nothing")
    if len(differences) < FIRST_LOOK:
        return "open"
    if p_values(np.asarray(differences, np.float64))[-1] > nominal_level(max_runs - 1, error_rate):
        return "open"
    return "above" if float(np.mean(differences)) > 0 else "below"
