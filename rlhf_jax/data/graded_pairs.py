"""Preference pairs out of graded responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.config.data import PairRule
from rlhf_jax.data.bad_row import BadRow, short


def pairs_from_scores(
    scores: Sequence[float | None],
    rule: PairRule = "all",
    min_gap: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...]]:
    """(chosen, rejected) indices and their score gaps, from one score a response.

    A pair needs a gap above zero and of at least `min_gap`. Responses without a score take no part. Equal scores are
    ordered by index. `best_random` draws the rejected one from all that qualify against the best; it needs `rng`.
    """
    if rule not in ("all", "best_worst", "best_random") or (rule == "best_random" and rng is None):
        raise ValueError(f"pair rule {rule!r} is unknown, or has no random generator; known rules are all, "
                         "best_worst, best_random (with rng)")
    ranked = sorted((-score, i) for i, score in enumerate(scores) if score is not None)
    pairs = [(i, j) for a, (low, i) in enumerate(ranked) for high, j in ranked[a + 1 :]
             if high - low > 0 and high - low >= min_gap]
    if rule != "all" and pairs:
        pairs = [pair for pair in pairs if pair[0] == ranked[0][1]]
        pairs = pairs[-1:] if rng is None or rule == "best_worst" else [pairs[int(rng.integers(len(pairs)))]]
    values = {i: -negated for negated, i in ranked}
    return tuple(pairs), tuple(values[i] - values[j] for i, j in pairs)


def finite_number(value: Any, column: str) -> float:
    """The cell as a float. Raises BadRow: not_a_number, non_finite_score."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("not_a_number", f"column {column!r} holds {short(value)}, which is no number") from error
    if not math.isfinite(number):
        raise BadRow("non_finite_score", f"column {column!r} holds {number}; a score must be finite")
    return number
