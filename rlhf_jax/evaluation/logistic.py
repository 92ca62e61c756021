"""Logistic regression with soft targets and weights, by Newton's method: a few weights over thousands of rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.special

from rlhf_jax.evaluation.statistics import Estimate

STEPS = 100
TOLERANCE = 1e-10
LARGEST = 15.0
"""Of features about one in size no weight is larger, unless they tell the outcomes apart without a fault."""
REFITS = 200
"""Bootstrap samples that an interval of something fitted comes from."""


def fit_logistic(features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None, penalty: float = 0.0
                 ) -> np.ndarray:
    """The w [M] that minimises sum_i weights_i CE(targets_i, sigmoid(features_i . w)) + penalty / 2 |w|^2.

    Args:
      features: [rows, M]; there is no intercept but a column of ones.
      targets: [rows] in [0, 1].
      weights: [rows], None for ones.

    Raises:
      ValueError: no finite w minimises it, because all targets lie on one side.
    """
    weights = np.ones(len(targets)) if weights is None else weights
    found, loss = np.zeros(features.shape[1]), np.inf
    identity = np.eye(features.shape[1])
    for _ in range(STEPS):
        predicted = scipy.special.expit(features @ found)
        gradient = features.T @ (weights * (predicted - targets)) + penalty * found
        curvature = (features * (weights * predicted * (1 - predicted))[:, None]).T @ features + penalty * identity
        if np.abs(gradient).max() <= TOLERANCE * max(1.0, weights.sum()):
            break
        step = np.linalg.solve(curvature + 1e-12 * np.trace(curvature) * identity, gradient)
        scale = 1.0
        while scale > 1e-6 and not (new := _loss(features, targets, weights, penalty, found - scale * step)) <= loss:
            scale /= 2
        if scale <= 1e-6:
            break
        found, loss = found - scale * step, new
    if np.abs(found).max() <= LARGEST:
        return found
    raise ValueError("the logistic fit has no finite solution: every outcome is the same, or one feature tells all of "
                     "them apart; such a score cannot be controlled for length or style")


def _loss(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalty: float, at: np.ndarray) -> float:
    logits = features @ at
    return float(weights @ (np.logaddexp(0, logits) - targets * logits) + penalty / 2 * at @ at)


def refitted_estimate(statistic: Callable[[np.ndarray], float], units: int, seed: int = 0) -> Estimate:
    """Something fitted, with an interval from refits on resampled units (prompts).

    A resample on which nothing can be fitted is left out. There is no interval (nan) with more than one in ten of them,
    nor of a single unit.

    Args:
      statistic: how often each unit counts [units] -> the number; ValueError where nothing can be fitted.
    """
    value, rng, found = statistic(np.ones(units)), np.random.default_rng(seed), []
    for _ in range(REFITS):
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        try:
            found.append(statistic(times.astype(float)))
        except ValueError:
            continue
    if units == 1 or len(found) < 0.9 * REFITS:
        return Estimate(value, math.nan, math.nan, math.nan, units)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, float(np.std(found, ddof=1)), float(low), float(high), units)
