"""Ridge regressions over frozen features, in one or two passes over rows that need not fit into memory.

ArmoRM's first stage (arXiv 2406.12845): for each objective one linear map of the last token's hidden state, without
intercept, on the rows that have that objective; its strength is chosen on held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""ArmoRM's grid, 1e-4 to 1e4 in decades."""


class Rows(NamedTuple):
    """Some rows: features [N, D], ratings [N, K] with NaN for holes, held_out [N] bool."""

    features: np.ndarray
    ratings: np.ndarray
    held_out: np.ndarray


class RidgeFit(NamedTuple):
    """Regressions of K objectives.

    weights: [K, D] float64. strengths: [K] chosen. errors: [K, L] held-out mean squared error of each strength.
    spread: [K] variance of the held-out ratings around the training mean: the error of a constant. rows: [K] rows
    that the weights are fitted on. held_out: [K] rows the strengths were chosen on.
    """

    weights: np.ndarray
    strengths: np.ndarray
    errors: np.ndarray
    spread: np.ndarray
    rows: np.ndarray
    held_out: np.ndarray


class TooFewRows(ValueError):
    """An objective has fewer rated rows than a regression needs."""


@dataclasses.dataclass
class Moments:
    """Sums over the rated rows of K objectives, float64: xx [K, D, D] of x x', xy [K, D] of x y, y [K], count [K].

    Objectives that are always rated together share nothing here: K D^2 numbers, whatever the number of rows.
    """

    xx: np.ndarray
    xy: np.ndarray
    y: np.ndarray
    count: np.ndarray

    @classmethod
    def zeros(cls, objectives: int, width: int) -> Moments:
        return cls(np.zeros((objectives, width, width)), np.zeros((objectives, width)), np.zeros(objectives),
                   np.zeros(objectives, np.int64))

    def add(self, features: np.ndarray, ratings: np.ndarray) -> None:
        """Adds rows: features [N, D], ratings [N, K]."""
        known = ~np.isnan(ratings)
        for objective in range(ratings.shape[1]):
            x, y = features[known[:, objective]].astype(np.float64), ratings[known[:, objective], objective]
            self.xx[objective] += x.T @ x
            self.xy[objective] += y @ x
            self.y[objective] += y.sum()
            self.count[objective] += len(y)


def ridge_path(xx: np.ndarray, xy: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """[L, D] minimisers of |y - X w|^2 + l |w|^2 for each strength l, from X'X [D, D] and X'y [D].

    X'X = Q diag(e) Q', w(l) = Q (e + l)^-1 Q' X'y: one decomposition serves all strengths.
    """
    values, vectors = np.linalg.eigh(xx)
    rotated = vectors.T @ xy
    return np.stack([vectors @ (rotated / (np.maximum(values, 0.0) + strength)) for strength in strengths])


def _check_rows(names: Sequence[str], moments: Moments, held_out: np.ndarray, width: int, few: bool) -> None:
    for name, rows, kept in zip(names, moments.count, held_out, strict=True):
        if rows + kept == 0:
            raise TooFewRows(f"no row is rated for {name!r}; leave it out of the objectives, or give rows that are")
        if kept < 2 or rows < 2:
            raise TooFewRows(f"{name!r} is rated in {rows} training and {kept} held-out rows; a strength is chosen on "
                             "at least two of each. Rate more prompts")
        if rows < width and not few:
            raise TooFewRows(f"{name!r} is rated in {rows} training rows and a feature has {width} numbers: with fewer "
                             "rows than numbers a regression can fit any ratings. Rate more rows, or set few_rows to "
                             "rely on the penalty alone")


def fit_ridge(batches: Callable[[], Iterator[Rows]], names: Sequence[str], width: int, *,
              strengths: Sequence[float] = STRENGTHS, refit: bool = True, few_rows: bool = False) -> RidgeFit:
    """Regresses every objective on its own rated rows and chooses its strength by held-out squared error.

    Args:
      batches: starts a pass over the rows; two passes are made.
      names: of the K objectives. width: D.
      refit: fit again on all rows with the chosen strength; False keeps the fit on the training rows, as ArmoRM's code
        does.
      few_rows: allow fewer rows than features.

    Raises:
      TooFewRows: an objective that no row has, or too few have.
    """
    training, kept = Moments.zeros(len(names), width), Moments.zeros(len(names), width)
    for rows in batches():
        training.add(rows.features[~rows.held_out], rows.ratings[~rows.held_out])
        kept.add(rows.features[rows.held_out], rows.ratings[rows.held_out])
    _check_rows(names, training, kept.count, width, few_rows)
    paths = np.stack([ridge_path(xx, xy, strengths) for xx, xy in zip(training.xx, training.xy, strict=True)])
    errors, spread = _held_out_errors(batches, paths, training.y / training.count)
    best = np.argmin(errors, axis=1)
    strength = np.asarray(strengths, np.float64)[best]
    weights, count = paths[np.arange(len(names)), best], training.count
    if refit:
        count = training.count + kept.count
        weights = np.stack([ridge_path(a + b, c + d, [chosen])[0] for a, b, c, d, chosen in zip(
            training.xx, kept.xx, training.xy, kept.xy, strength, strict=True)])
    return RidgeFit(weights, strength, errors, spread, count, kept.count)


def _held_out_errors(batches: Callable[[], Iterator[Rows]], paths: np.ndarray, means: np.ndarray
                     ) -> tuple[np.ndarray, np.ndarray]:
    """[K, L] mean squared errors on the held-out rows of the weights [K, L, D]; [K] of the constants `means`."""
    sums, constant, count = np.zeros(paths.shape[:2]), np.zeros(len(paths)), np.zeros(len(paths))
    for rows in batches():
        x, y = rows.features[rows.held_out].astype(np.float64), rows.ratings[rows.held_out]
        known = ~np.isnan(y)
        for objective, path in enumerate(paths):
            some = known[:, objective]
            truth = y[some, objective]
            sums[objective] += np.sum((x[some] @ path.T - truth[:, None]) ** 2, axis=0)
            constant[objective] += np.sum((truth - means[objective]) ** 2)
            count[objective] += some.sum()
    return sums / count[:, None], constant / count
