"""How little pairs so far say about another pair: its feature difference in the inverse norm of their covariance.

With rewards linear in features phi, a pair tells the reward along phi(a) - phi(b). After pairs with differences d_s the
covariance is Sigma = lambda I + sum_s d_s d_s', and a new difference d is uncertain by |d| = sqrt(d' Sigma^-1 d): the
theory's enhancer in "RLHF Workflow: From Reward Modeling to Online RLHF" (2024), arXiv 2405.07863, algorithm 1.
"""

from __future__ import annotations

import math

import numpy as np


def projection(width: int, size: int | None, seed: int) -> np.ndarray:
    """[D, d] float64 that keeps lengths in the mean: a seeded normal matrix; the identity where d would not be less.

    width: D. size: d; None for D.
    """
    if size is None or size >= width:
        return np.eye(width)
    return np.random.default_rng(seed).standard_normal((width, size)) / math.sqrt(size)


def with_pairs(covariance: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """[d, d] Sigma + sum_s d_s d_s'; its eigenvalues never fall. differences: [S, d]."""
    return covariance + differences.T @ differences


def uncertainty(differences: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """[S] sqrt(d_s' Sigma^-1 d_s) of differences [S, d] under a covariance [d, d].

    >>> uncertainty(np.array([[2.0, 0.0], [0.0, 2.0]]), np.diag([4.0, 1.0])).tolist()
    [1.0, 2.0]
    """
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), differences.T)
    return np.sqrt(np.sum(np.square(whitened), axis=0))


def second_player(features: np.ndarray, values: np.ndarray, covariance: np.ndarray, width: float | None) -> int:
    """The place of the answer that is held against the best one: of those near it the most uncertain.

    Args:
      features: [n, d] of a prompt's answers, best first. values: [n] their scores, falling.
      width: how far below the best one it may lie; the second best always may be it, so that 0 is best against second
        best. None for no limit.
    """
    near = np.ones(len(values), bool) if width is None else values >= values[0] - width
    near[1] = True
    found = uncertainty(features[1:] - features[0], covariance)
    return 1 + int(np.argmax(np.where(near[1:], found, -1.0)))
